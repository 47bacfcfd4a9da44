"""A private Ray: closed to other users of the machine, to other machines, and to who has not its token."""

import ipaddress
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster.runtime.ray_connection import address

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
JOIN = "from workflows.serve import promote; promote.main(['--address', '{}'])"


def test_rays_folder_is_closed_to_other_users_of_the_machine(machine):
    assert stat.S_IMODE(machine.stat().st_mode) == 0o700
    assert Path(ray.get_runtime_context().worker.node.get_session_dir_path()).is_relative_to(machine)


def test_ray_listens_on_loopback_only_but_for_one_port_of_each_replica(stage):
    beyond = [process for process, ip in listening() if not ip.is_loopback]
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


def listening() -> Iterator[tuple[psutil.Process, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Every process of this Ray, with the address of each socket at which it listens."""
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                ip = ipaddress.ip_address(connection.laddr.ip)
                yield process, getattr(ip, "ipv4_mapped", None) or ip
