"""A machine whose /dev/shm is full, as in a container with Docker's default: the pipeline does without it."""

import shlex
import subprocess

import pytest

from tests.paths import PROJECT
from tests.workflows.commands import command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
EXPERIMENT = PROJECT / "tests" / "workflows" / "one_energy.yaml"
FULL = "mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 64k /dev/zero > /dev/shm/full"


def test_a_pipeline_trains_and_answers_with_full_shared_memory(tmp_path):
    """In a mount namespace of its own, so that other processes of the machine keep theirs."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare needs root")
    arguments, settings = command(tmp_path, "pipeline", experiment=EXPERIMENT)
    script = f"{FULL} && df /dev/shm && exec {shlex.join(arguments)}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], timeout=800, check=False, **settings)
    assert "100% /dev/shm" in done.stdout
    assert done.returncode == 0, done.stdout
    assert "the endpoint answered" in done.stdout
    assert "Traceback" not in done.stdout
