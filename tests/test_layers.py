"""Importing the science or reading an experiment does nothing else."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import PROJECT

EXPERIMENTS = sorted((PROJECT / "workflows" / "experiments").glob("*.yaml"))
MODULES = sorted(
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("edlm", "cluster", "workflows")
    for path in (PROJECT / package).rglob("*.py")
)
# Triton is for Linux.
IMPORTABLE = [name for name in MODULES if name != "edlm.rng_kernel" or importlib.util.find_spec("triton")]
SCIENCE = [name for name in IMPORTABLE if name.split(".")[0] == "edlm"]

# Runs in a fresh interpreter: after each part, which machines are imported, which threads and children run.
PROBE = """
import importlib, sys, threading, multiprocessing

def report():
    machines = sorted({{"ray", "deepspeed", "mlflow", "fastapi"}} & set(sys.modules))
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print("machines", machines, "threads", threads, "children", multiprocessing.active_children())

for name in {science!r}:
    importlib.import_module(name)
report()
from workflows.experiment import Experiment
for path in {experiments!r}:
    sys.modules["edlm.config"].load(Experiment, path)
report()
for name in {others!r}:
    importlib.import_module(name)
report()
"""
NOTHING = "machines [] threads [] children []"


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[str]:
    """What a fresh interpreter prints after importing the science, reading every experiment, and importing the rest."""
    folder = tmp_path_factory.mktemp("imports")
    others = [name for name in IMPORTABLE if name not in SCIENCE]
    probe = PROBE.format(science=SCIENCE, experiments=[str(path) for path in EXPERIMENTS], others=others)
    environment = dict(os.environ, PYTHONPATH=str(PROJECT), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout.splitlines()


def test_importing_every_module_of_the_science_does_nothing_and_touches_no_machine(reports):
    assert reports[0] == NOTHING


def test_reading_every_experiment_touches_no_machine(reports):
    assert reports[1] == NOTHING


def test_importing_the_machines_and_the_story_starts_nothing_and_writes_nothing(reports):
    assert len(reports) == 3
    assert reports[2].endswith("threads [] children []")


def test_every_module_begins_with_one_paragraph_of_sentences_that_no_other_module_begins_with():
    modules: dict[str, str] = {}
    for name in MODULES:
        path = PROJECT / Path(*name.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
        assert len(first.split()) > 2, f"{name} has no docstring"
        assert first.endswith("."), f"{name}: {first}"
        assert modules.setdefault(first, name) == name, f"{name} and {modules[first]} say the same"
