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
WRONG_TOKEN = "0123456789abcdef" * 4
JOIN = "from workflows.serve import promote; promote.main(['--address', '{}'])"


def test_rays_folder_is_closed_to_other_users_of_the_machine(machine):
    assert stat.S_IMODE(machine.stat().st_mode) == 0o700
    assert Path(ray.get_runtime_context().worker.node.get_session_dir_path()).is_relative_to(machine)


def test_ray_listens_on_loopback_only_but_for_one_port_of_each_replica(stage):
    beyond = [process for process, ip, _ in listening() if not ip.is_loopback]
    assert sorted(process.pid for process in beyond) == sorted(stage.pids())
    assert len(list(listening())) > len(beyond)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "given", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG_TOKEN}], ids=["none", "wrong"]
)
def test_a_client_without_the_token_or_with_another_one_gets_an_error(tmp_path, given):
    unknown = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in unknown} | given
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
    assert WRONG_TOKEN not in output.stderr
