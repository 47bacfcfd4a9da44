"""A command whose GCS is gone ends with one line; one whose GCS is back in time goes on."""

import socket
import subprocess
import sys

import pytest

from tests.paths import PROJECT

WATCHING = """
import sys, time
from cluster.runtime.cluster_watch import watched_gcs

with watched_gcs(sys.argv[1], gone_seconds=float(sys.argv[2])):
    print("watches", flush=True)
    sys.stdin.readline()
print("ends by itself")
"""


def watching(address: str, seconds: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHING, address, str(seconds)], cwd=PROJECT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "watches\n"
    return process


@pytest.fixture
def gcs():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_gcs_that_stays_away_ends_the_process_with_what_to_do(gcs):
    host, port = gcs.getsockname()
    with watching(f"{host}:{port}", 1.0) as process:
        gcs.close()
        assert process.wait(30) == 1
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()
    assert line.startswith(f"error: Ray's GCS at {host}:{port} has not answered for 1 s")
    assert "run the same command again" in line


def test_one_that_answers_and_one_that_is_back_in_time_end_nothing(gcs):
    host, port = gcs.getsockname()
    with watching(f"{host}:{port}", 4.0) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)  # longer than a GCS may be gone
        gcs.close()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        with socket.create_server((host, port)), pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)
        output, errors = process.communicate("\n", timeout=30)
    assert (output, errors, process.returncode) == ("ends by itself\n", "", 0)
