"""The examples of docstrings run, in every module that has one."""

import doctest
from importlib import import_module

import pytest

from tests.paths import PROJECT


def modules_with_examples() -> list[str]:
    paths = [path for package in ("edlm", "cluster", "workflows") for path in (PROJECT / package).rglob("*.py")]
    shown = [path.relative_to(PROJECT) for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in shown)


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run_as_they_are_shown(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
