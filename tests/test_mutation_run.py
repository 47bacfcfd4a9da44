"""What `make mutants` plants: one plausible slip at each position of the code, the same ones for the same seed."""

import random
import re
from pathlib import Path

import pytest

from tests.mutants import PROJECT
from tests.mutation_run import CORE, LEFT_OUT, LOOKED_AT, _annotations, _in_turn, looked_at_in_energies

SOURCE = '''"""A file."""

def total(values: "list[int | None]", start: int | float = 1) -> int | float:
    return start + sum(value for value in values if value is not None and value > 0)
'''


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "edlm").mkdir()
    (tmp_path / "edlm/a.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return [(spec.start_pos, spec.operator_name, spec.occurrence) for spec in _in_turn(("a",), random.Random(3))]


def test_every_place_of_the_code_is_planted_once_and_no_type_hint(planted):
    locations = [place for place, _, _ in planted]
    assert len(set(locations)) == len(locations)
    lines = SOURCE.splitlines()
    slips = {re.match(r"\w+|\W", lines[line - 1][column:])[0] for line, column in locations}  # pyright: ignore
    assert {"1", "+", "0", ">"} <= slips
    assert not any(line == 3 and "|" in lines[2][column : column + 1] for line, column in locations)
    assert len(_annotations(Path("edlm/a.py"))) == 3


def test_a_seed_names_its_mutants(planted):
    again = [(spec.start_pos, spec.operator_name, spec.occurrence) for spec in _in_turn(("a",), random.Random(3))]
    assert again == planted


def test_every_file_that_is_mutated_and_every_test_that_looks_at_it_exists():
    for file, tests in LOOKED_AT.items():
        assert (PROJECT / "edlm" / f"{file}.py").is_file()
        for name in tests.split():
            assert (PROJECT / "tests" / f"{name}.py").is_file(), name


def test_the_test_of_a_files_own_name_looks_at_it():
    for file, tests in LOOKED_AT.items():
        folder, _, name = file.rpartition("/")
        own = f"{folder}/test_{name}".lstrip("/")
        assert own in tests.split() or not (PROJECT / "tests" / f"{own}.py").is_file(), own


def test_a_new_energy_is_mutated_once_it_has_a_test(tmp_path):
    for path in ("edlm/energies/kinds.py", "edlm/energies/new.py", "tests/energies/test_kinds.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert looked_at_in_energies(tmp_path / "edlm", tmp_path / "tests") == {}
    (tmp_path / "tests/energies/test_new.py").touch()
    expected = {"energies/new": "energies/test_new energies/test_kinds training/test_energy_objectives"}
    assert looked_at_in_energies(tmp_path / "edlm", tmp_path / "tests") == expected


def test_every_file_of_the_core_is_mutated_or_left_out_by_name():
    edlm = PROJECT / "edlm"
    files = [edlm / f"{name}.py" for name in CORE if not (edlm / name).is_dir()]
    files += [path for name in CORE for path in (edlm / name).glob("*.py") if path.name != "__init__.py"]
    core = {path.relative_to(edlm).with_suffix("").as_posix() for path in files}
    assert core - set(LOOKED_AT) == LEFT_OUT
