"""What docs/guides/add-an-energy.md promises of an energy that is added to the union: the tests of all energies."""

import re
import subprocess
import sys

from tests.paths import PROJECT

PROMISED = [
    "tests/energies/test_kinds.py",
    "tests/checkpoints/test_networks.py",
    "tests/training/test_objectives.py",
    "tests/workflows/training/test_energy_objective_factories.py",
]


def test_an_energy_in_the_union_is_tested_as_every_energy_without_other_code():
    options = ["-p", "tests.energies.energy_of_the_guide", "-p", "no:cacheprovider", "-n", "0", "-vv", "-k", "bigram"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *PROMISED], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    passed = re.findall(r"^(tests/\S+\.py)::\S+.* PASSED", done.stdout, re.MULTILINE)
    assert {file: passed.count(file) > 0 for file in PROMISED} == dict.fromkeys(PROMISED, True), done.stdout
    assert passed.count(PROMISED[0]) > 6
