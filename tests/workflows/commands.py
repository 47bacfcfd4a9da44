"""The commands of a user on the smallest experiment, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.paths import PROJECT, SMALLEST


def command(home: Path, module: str, *overrides: str, experiment: Path = SMALLEST) -> tuple[list[str], dict]:
    arguments = [sys.executable, "-m", f"workflows.{module}", str(experiment), *overrides]
    settings = {
        "cwd": PROJECT,
        "env": {**os.environ, "EDLM_HOME": str(home), "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,
    }
    return arguments, settings


def run(home: Path, module: str, *overrides: str, expect: int = 0, experiment: Path = SMALLEST) -> str:
    arguments, settings = command(home, module, *overrides, experiment=experiment)
    done = subprocess.run(arguments, timeout=700, check=False, **settings)
    assert done.returncode == expect, done.stdout
    return done.stdout
