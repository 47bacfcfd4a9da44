"""Which Ray cluster a command joins, and what it says where there is none."""

import atexit
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray

from cluster.config import Cluster
from cluster.runtime import ray_connection
from cluster.runtime.ray_connection import connect, named_address, private_ray
from edlm.config import ConfigurationError
from tests.chaos.test_interrupted import wait_for_orphans_of


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which `ray start` writes down what it has begun; it is not there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_connection, "get_ray_address_file", lambda _: str(tmp_path / "ray_current_cluster"))
    return tmp_path / "ray_current_cluster"


@pytest.mark.parametrize("given", [None, "auto"])
def test_no_cluster_is_joined_unless_it_is_named(begun, given):
    with pytest.raises(ConfigurationError, match="`ray start` has begun no cluster of yours"):
        named_address(given)
    begun.write_text("10.0.0.3:6379\n")
    assert named_address(given) == "10.0.0.3:6379"


def test_a_cluster_that_another_user_began_is_not_joined(begun, monkeypatch):
    begun.write_text("10.0.0.3:6379")
    other = begun.stat().st_uid + 1
    monkeypatch.setattr(ray_connection.os, "getuid", lambda: other)
    with pytest.raises(ConfigurationError, match="no cluster of yours"):
        named_address(None)


def test_an_address_that_was_given_comes_before_that_of_the_environment_and_of_ray_start(begun, monkeypatch):
    begun.write_text("10.0.0.3:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert named_address("10.0.0.1:6379") == "10.0.0.1:6379"
    assert named_address(None) == named_address("auto") == "10.0.0.2:6379"


def test_the_token_that_ray_makes_is_its_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    has_none = SimpleNamespace(has_token=lambda **_: False)  # Ray remembers the token of the real home
    monkeypatch.setattr(ray_connection, "AuthenticationTokenLoader", SimpleNamespace(instance=lambda: has_none))
    before = os.umask(0o022)
    try:
        ray_connection._make_token()
        assert os.umask(0o022) == 0o022, "the umask is as it was"
    finally:
        os.umask(before)
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text()) == 64
    assert [stat.S_IMODE(path.stat().st_mode) for path in (token, token.parent)] == [0o600, 0o700]


def test_an_address_where_nothing_listens_is_named_at_once():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        where = f"127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"nothing answers at {where}"), connect(Cluster(address=where)):
            pass


@pytest.mark.parametrize("address", ["nonsense", "localhost:port"])
def test_an_address_of_another_form_is_one_line(address):
    with (
        pytest.raises(ConfigurationError, match=f"address: '{address}' is not HOST:PORT"),
        connect(Cluster(address=address)),
    ):
        pass


@pytest.mark.parametrize("failures", [1, 2])
def test_a_busy_machine_has_a_second_attempt_to_start_ray_and_then_an_error_that_says_why(monkeypatch, failures):
    folders = []

    def init(_temp_dir: str, **_) -> None:
        folders.append(_temp_dir)
        if len(folders) <= failures:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray_connection.ray, "init", init)
    if failures < 2:
        with private_ray(1):
            pass
    else:
        expected = r"did not start in time, 2 times: .* run the command again"
        with pytest.raises(ConfigurationError, match=expected), private_ray(1):
            pass
    assert len(set(folders)) == 2


def test_another_error_of_rays_start_is_raised_as_it_is(monkeypatch):
    def init(**_) -> None:
        raise ValueError("another")

    monkeypatch.setattr(ray_connection.ray, "init", init)
    with pytest.raises(ValueError, match="another"), private_ray(1):
        pass


OPEN = """
import sys
from cluster.runtime import ray_connection
if sys.argv[1] == "without Ray":
    ray_connection.ray.init = lambda _temp_dir, **_: ray_connection.Path(_temp_dir, "logs").mkdir(parents=True)
with ray_connection.private_ray(1) as folder:
    print(folder, flush=True)
    input()
"""


@pytest.mark.parametrize("how", ["without Ray", pytest.param("with Ray", marks=pytest.mark.chaos)])
def test_the_folder_of_a_command_that_was_killed_is_gone_once_another_has_run(tmp_path, how):
    environment = {**os.environ, "EDLM_HOME": str(tmp_path)}  # by which its orphans are found
    command = [sys.executable, "-c", OPEN, how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    folders = []
    for number in (signal.SIGKILL, None):
        with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
            assert process.stdout is not None
            folders.append(Path(process.stdout.readline().strip()))
            assert (folders[-1] / "r0").is_dir()
            if number is not None:
                os.kill(process.pid, number)
            process.communicate("\n")
        wait_for_orphans_of(tmp_path)
        if number is not None:
            assert (folders[-1] / "r0").is_dir()
    assert [folder for folder in folders if folder.exists()] == []


class HangsAtItsExit:
    def process(self) -> int:
        atexit.register(time.sleep, 600)
        return os.getpid()

    def leave(self) -> None:
        ray.actor.exit_actor()


def test_a_worker_that_hangs_in_its_own_exit_ends_with_the_private_ray(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_connection, "EXIT_SECONDS", 1.0)
    with subprocess.Popen([shutil.copy("/bin/true", tmp_path / "raylet")]), private_ray(1):  # an earlier one has ended
        actor = ray.remote(HangsAtItsExit).remote()
        process = psutil.Process(ray.get(actor.process.remote()))
        actor.leave.remote()
        time.sleep(1.0)  # it is in its exit now
        assert process.is_running()
    psutil.wait_procs([process], timeout=10)  # a moment, in which the kernel ends it
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
