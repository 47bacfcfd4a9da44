"""The tests can fail: some faults of `tests.mutants` are planted here, all by `python -m tests.mutants`."""

import pytest

from tests.mutants import MUTANTS, PROJECT, Mutant, caught, plant

QUICK = {
    "a block sees the new tokens of its neighbours",
    "log Z of an energy that is not normalised is taken for known",
}


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.name in QUICK], ids=lambda mutant: mutant.name)
def test_a_planted_fault_makes_a_test_fail(mutant):
    assert caught(mutant)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_still_has_its_place_in_the_source(mutant, tmp_path):
    copied = tmp_path / "edlm" / mutant.file
    copied.parent.mkdir(parents=True)
    copied.write_text((PROJECT / "edlm" / mutant.file).read_text())
    plant(mutant, tmp_path)


def test_the_faults_planted_here_are_among_them():
    assert {mutant.name for mutant in MUTANTS} >= QUICK


@pytest.mark.parametrize("test", sorted({test for mutant in MUTANTS for test in mutant.tests}))
def test_the_tests_of_every_fault_exist(test):
    assert (PROJECT / test.partition("::")[0]).is_file()


def test_a_fault_without_a_place_is_an_error(tmp_path):
    (tmp_path / "edlm").mkdir()
    (tmp_path / "edlm" / "equations.py").write_text("")
    with pytest.raises(ValueError, match="stands 0 times"):
        plant(Mutant("nowhere", "equations.py", "no such line", "", ()), tmp_path)
