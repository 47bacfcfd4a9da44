"""A private Ray: closed to other users of the machine, to other machines, and to who has not its token."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from cluster.runtime.ray_connection import address
from tests.cluster.listening import listening

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
JOIN = "from workflows.serve import promote; promote.main(['--address', '{}'])"


def test_rays_folder_is_closed_to_other_users_of_the_machine(machine):
    assert stat.S_IMODE(machine.stat().st_mode) == 0o700
    assert Path(ray.get_runtime_context().worker.node.get_session_dir_path()).is_relative_to(machine)


def test_ray_listens_on_loopback_only_but_for_one_port_of_each_replica(stage):
    beyond = [process for process, ip, _ in listening() if not ip.is_loopback]
    assert sorted(process.pid for process in beyond) == sorted(stage.pids())
    assert len(list(listening())) > len(beyond)


@pytest.mark.usefixtures("machine")
def test_a_client_without_the_token_gets_an_error(tmp_path):
    unknown = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in unknown}
    output = subprocess.run(
        [sys.executable, "-c", JOIN.format(address())],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert output.returncode == 1
    assert (
        f"error: not promoted: address: the Ray cluster at {address()} does not take this shell's token"
        in output.stderr
    )
    assert "Traceback" not in output.stderr
