"""`import edlm` offers a few names, loads nothing until one is used, and says what is missing."""

import ast
import subprocess
import sys

import pytest

import edlm
from tests.paths import PROJECT

HEAVY = "{'torch', 'numpy', 'ray', 'httpx', 'pydantic'}"


def run(code: str) -> str:
    environment = {"PYTHONPATH": str(PROJECT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_edlm_loads_nothing():
    assert run(f"import sys, edlm; dir(edlm); print({HEAVY} & set(sys.modules))") == "set()"


def test_the_client_loads_no_torch():
    assert run("import sys, edlm; edlm.Client; print({'torch', 'numpy', 'ray'} & set(sys.modules))") == "set()"


def test_every_public_name_is_there_and_listed():
    for name in edlm.__all__:
        assert getattr(edlm, name).__name__ == name
    assert set(edlm.__all__) <= set(dir(edlm))


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PROJECT / "edlm" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == edlm._HOME
    assert sorted(seen) == edlm.__all__


def test_an_unknown_name_states_what_there_is():
    with pytest.raises(AttributeError, match=r"module 'edlm' has no attribute 'lod'; it offers .*load"):
        _ = edlm.lod


@pytest.mark.parametrize("name", ["load", "nelbo"])
def test_without_torch_the_extra_is_named(name):
    code = f"""
import sys
sys.modules["torch"] = None
import edlm
try:
    edlm.{name}
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(code) == f'edlm.{name} needs torch, which is not installed: pip install "edlm[models]"'
