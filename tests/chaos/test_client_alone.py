"""A fresh environment with the client extra alone streams from a running service. It installs from a registry."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import make_bundle
from tests.paths import PROJECT
from tests.wheels import build_wheels

pytestmark = pytest.mark.chaos

STREAMING = """
import sys
from importlib.metadata import distributions
from edlm import Client
from edlm.client.types import Choice, Ended
with Client(sys.argv[1]) as client, client.stream("ab", max_tokens=30, seed=1) as stream:
    events = list(stream)
assert isinstance(events[-1], Ended)
print("".join(event.text for event in events if isinstance(event, Choice)))
print(*sorted(distribution.name.lower() for distribution in distributions()))
"""


@pytest.fixture
def python(tmp_path) -> Path:
    """The interpreter of a new environment that holds the wheel with its client extra, and what that asks for."""
    build_wheels(tmp_path)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=240)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", PROJECT / "constraints.txt"]
    subprocess.run([*pip, f"edlm[client] @ file://{wheel}"], check=True, timeout=600, env=clean())
    return python


@pytest.fixture
def url(tmp_path) -> Iterator[str]:
    """The address of `python -m cluster.http.local FOLDER`, which runs until the test ends."""
    folder = make_bundle(tmp_path / "models")
    command = [sys.executable, "-m", "cluster.http.local", str(folder), "--port", "0"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            actual = re.match(r"(http://127\.0\.0\.1:\d+); Ctrl-C stops it", line)
            assert actual, line
            yield actual[1]
        finally:
            server.terminate()


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_client_extra_alone_streams_from_a_service(python, url, tmp_path):
    done = subprocess.run(
        [python, "-c", STREAMING, url], cwd=tmp_path, env=clean(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    text, installed = done.stdout.splitlines()
    assert len(text) == 30
    assert {"edlm", "httpx", "pydantic"} <= set(installed.split())
    assert not {"torch", "numpy", "ray", "tyro", "fsspec"} & set(installed.split())
