"""A flat file holds what a module uses, once, and nothing else; what cannot be flat is refused with its name."""

import pytest

from workflows.exporting import flattening
from workflows.exporting.flattening import flattened

NUMBERS = '''"""Numbers of the project."""

import math
from jaxtyping import Float

UNUSED = 3
# Why it is two.
TWO = 2  # noqa: E501


def double(x: Float[int, "b"]) -> Float[int, "b"]:
    """Return twice x."""
    return TWO * math.floor(x)
'''
MAIN = '''"""Main module."""

from edlm import numbers
from edlm.numbers import TWO


def four() -> int:
    return numbers.double(TWO)
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module of a project of its own."""
    monkeypatch.setattr(flattening, "PROJECT", tmp_path)
    flattening.parsed.cache_clear()
    (tmp_path / "edlm").mkdir()

    def module(name: str, text: str) -> None:
        (tmp_path / "edlm" / f"{name}.py").write_text(text)

    module("numbers", NUMBERS)
    module("main", MAIN)
    yield module
    flattening.parsed.cache_clear()


def flat(**instead: str) -> str:
    return flattened("edlm.main", "Flat.", frozenset({"torch"}), {f"edlm.{name}": to for name, to in instead.items()})


def test_a_flat_file_runs_and_holds_what_is_used_with_its_comments(write):
    write("main", MAIN)
    text = flat()
    space: dict = {}
    exec(compile(text, "flat", "exec"), space)
    assert space["four"]() == 4
    assert space["__doc__"] == "Flat."
    assert "# Why it is two.\nTWO = 2\n" in text
    assert "UNUSED" not in text
    assert "import jaxtyping" not in text
    assert 'Float[int, "b"]' in text  # a note on shapes


def test_a_module_is_replaced_by_another_with_the_same_names(write):
    write("others", '"""Others."""\n\nTWO = 5\n\n\ndef double(x):\n    return x\n')
    space: dict = {}
    exec(compile(flat(numbers="edlm.others"), "flat", "exec"), space)
    assert space["four"]() == 5


def test_one_name_with_two_meanings_is_refused(write):
    write("main", MAIN.replace("def four", "def double() -> int:\n    return 1\n\n\ndef four"))
    with pytest.raises(ValueError, match="'double' is of edlm"):
        flat()


def test_a_variable_that_would_hide_a_name_is_refused(write):
    write("main", MAIN.replace("    return", "    double = 1\n    return double +"))
    with pytest.raises(ValueError, match=r"has a variable 'double', which hides that of edlm.numbers"):
        flat()


def test_another_package_is_refused(write):
    write("main", "import yaml\n" + MAIN + "\n\ndef read():\n    return yaml\n")
    with pytest.raises(ValueError, match="imports yaml, and the file may import torch only"):
        flat()


def test_a_renamed_import_is_refused(write):
    write("main", MAIN.replace("import TWO", "import TWO as PAIR").replace("(TWO)", "(PAIR)"))
    with pytest.raises(ValueError, match="import it by its name"):
        flat()


def test_a_name_that_is_not_there_is_refused(write):
    write("main", MAIN.replace("import TWO", "import THREE").replace("(TWO)", "(THREE)"))
    with pytest.raises(ValueError, match="defines no 'THREE'"):
        flat()
