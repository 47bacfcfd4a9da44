"""The layers hold, and importing the science or reading an experiment does nothing else."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from tests.paths import PROJECT

EXPERIMENTS = sorted((PROJECT / "workflows" / "experiments").glob("*.yaml"))
MODULES = sorted(
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("edlm", "cluster", "workflows")
    for path in (PROJECT / package).rglob("*.py")
)
SCIENCE = [name for name in MODULES if name.split(".")[0] == "edlm"]

# Runs in a fresh interpreter: says which machines were imported, which threads and children run, what was printed.
PROBE = """
import importlib, sys, threading, multiprocessing
for name in {names!r}:
    importlib.import_module(name)
{then}
machines = sorted({{"ray", "deepspeed", "mlflow", "fastapi"}} & set(sys.modules))
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
print("machines", machines, "threads", threads, "children", multiprocessing.active_children())
"""
NOTHING = "machines [] threads [] children []\n"


def imported(names: list[str], folder: Path, then: str = "") -> str:
    """What a fresh interpreter, standing in `folder`, prints after importing `names`."""
    environment = dict(os.environ, PYTHONPATH=str(PROJECT), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(names=names, then=then)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_of_the_science_does_nothing_and_touches_no_machine(tmp_path):
    assert imported(SCIENCE, tmp_path) == NOTHING
    assert list(tmp_path.iterdir()) == []


def test_reading_every_experiment_touches_no_machine(tmp_path):
    then = f"for path in {[str(path) for path in EXPERIMENTS]!r}: importlib.import_module('edlm.config').load("
    then += "sys.modules['workflows.experiment'].Experiment, path)"
    assert imported(["workflows.experiment"], tmp_path, then) == NOTHING
    assert list(tmp_path.iterdir()) == []


def test_importing_the_machines_and_the_story_starts_nothing_and_writes_nothing(tmp_path):
    names = [name for name in MODULES if name not in SCIENCE]
    assert "threads [] children []" in imported(names, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_imports_point_down_only():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=PROJECT, capture_output=True, text=True, timeout=120, env={**os.environ, "CI": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_begins_with_one_paragraph_of_sentences_that_no_other_module_begins_with():
    modules: dict[str, str] = {}
    for name in MODULES:
        path = PROJECT / Path(*name.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
        assert len(first.split()) > 2, f"{name} has no docstring"
        assert first.endswith("."), f"{name}: {first}"
        assert modules.setdefault(first, name) == name, f"{name} and {modules[first]} say the same"
