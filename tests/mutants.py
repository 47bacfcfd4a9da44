"""Faults of `mutants.yaml`: each is planted in a copy of the science, and the tests named beside it must fail.

python -m tests.mutants            # all of them, a table at the end
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.paths import PROJECT

SECONDS = 300


@dataclass(frozen=True)
class Mutant:
    """`old` in `edlm/FILE` becomes `new`; then `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = tuple(
    Mutant(**fields | {"tests": tuple(fields["tests"])})
    for fields in yaml.safe_load((PROJECT / "tests/mutants.yaml").read_text(encoding="utf-8"))
)


def copy(folder: Path) -> None:
    """Copy the packages and the tests of the science to `folder`, so that none is imported from elsewhere."""
    for name in ("edlm", "cluster", "workflows", "tests"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "cluster"))
    shutil.copy(PROJECT / "pyproject.toml", folder)


def plant(mutant: Mutant, folder: Path) -> None:
    """Plant the fault in the copy; raise ValueError unless its source line occurs exactly once."""
    path = folder / "edlm" / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name!r}: {mutant.old!r} stands {source.count(mutant.old)} times in edlm/{mutant.file}"
        )
    path.write_text(source.replace(mutant.old, mutant.new))


def failures(folder: Path, tests: tuple[str, ...]) -> list[str]:
    """The names of the tests that fail in the copy."""
    # -B: a fault of the same size and second would be hidden by the bytecode of the one before
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rf", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]


def caught(mutant: Mutant) -> list[str]:
    """The tests that see this fault."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        copy(Path(scratch))
        plant(mutant, Path(scratch))
        return failures(Path(scratch), mutant.tests)


def main() -> None:
    every = tuple(dict.fromkeys(test for mutant in MUTANTS for test in mutant.tests))
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        copy(Path(scratch))
        if wrong := failures(Path(scratch), every):
            raise SystemExit(f"without a fault these fail: {wrong}")
    missed = []
    print("| fault | tests that fail | the first of them |\n|---|---|---|")
    for mutant in MUTANTS:
        seen = caught(mutant)
        print(
            f"| {mutant.name} | {len(seen)} | {seen[0].split('::')[1].partition('[')[0] if seen else 'NONE'} |",
            flush=True,
        )
        missed += [] if seen else [mutant.name]
    if missed:
        raise SystemExit(f"not seen by any test: {missed}")


if __name__ == "__main__":
    main()
