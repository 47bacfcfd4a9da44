"""The wheels of this checkout, as the build backend makes them for pip, without pip."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.paths import PROJECT


def build_wheels(folder: Path) -> None:
    """Put the wheel into `folder`/wheel and the editable one, of `folder`/source, into `folder`/editable."""
    source = folder / "source"
    source.mkdir()
    for name in ("edlm", "cluster", "workflows"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source / name)
    build = "from setuptools import build_meta as b; b.build_wheel('../wheel'); b.build_editable('../editable')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
