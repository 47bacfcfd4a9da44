"""Machines of a test: network namespaces on a bridge, each with an address, a folder and processes of its own.

They share the disk and the processors of this machine, and nothing of its network. Made by root, with iproute2.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

BRIDGE = "edlm-bridge"
SUBNET = "10.213.77"
FIRST = 10  # last number of the first machine's address; the bridge, and so this process, has 1
CONFIGURED = Path("/etc/netns")  # what `ip netns exec` shows in place of the files of /etc
LOCK = Path("/run/edlm-bridge.lock")  # one test at a time has the names
END_SECONDS = 10.0


@dataclass(frozen=True)
class NetworkMachine:
    """A network namespace that stands for a machine."""

    name: str
    address: str
    folder: Path
    """Its disk, as far as programs keep to it."""

    @property
    def namespace(self) -> str:
        """Name of the namespace, and of its end of the cable on the bridge."""
        return f"edlm-{self.name}"

    @property
    def within(self) -> list[str]:
        """The words before a command that is to run on this machine."""
        return ["ip", "netns", "exec", self.namespace]

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of the machine."""
        found = []
        for number in ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(number)))
        return found

    def kill(self) -> None:
        """End all processes of the machine at once, as a power failure does."""
        while living := self.processes():
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(living, timeout=END_SECONDS)

    def cut_off(self) -> None:
        """Pull the cable: nothing arrives any more, and no connection is closed."""
        ip("link", "set", self.namespace, "down")

    def connect(self) -> None:
        """Plug the cable in again."""
        ip("link", "set", self.namespace, "up")


@contextmanager
def network(names: Sequence[str], folder: Path) -> Iterator[dict[str, NetworkMachine]]:
    """Yield a machine of each name (at most ten letters), with a folder below `folder`; they are gone after the block.

    Skip the test where namespaces cannot be made.
    """
    _require_namespaces()
    made = {name: NetworkMachine(name, f"{SUBNET}.{FIRST + i}", folder / name) for i, name in enumerate(names)}
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove(list(made.values()))  # what a test that was killed left
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            ip("addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
            ip("link", "set", BRIDGE, "up")
            for machine in made.values():
                _make(machine)
            yield made
        finally:
            _remove(list(made.values()))


def ip(*words: str) -> str:
    """Run `ip` and return its output; raise RuntimeError with its message if it fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _require_namespaces() -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces are made by root, with iproute2")
    try:
        ip("netns", "add", "edlm-probe")
        ip("netns", "delete", "edlm-probe")
    except RuntimeError as error:
        pytest.skip(f"no network namespace can be made here: {error}")


def _make(machine: NetworkMachine) -> None:
    name, etc = machine.namespace, CONFIGURED / machine.namespace
    machine.folder.mkdir(parents=True)
    etc.mkdir(parents=True)
    # Gloo listens at the address of the host's name; a name server, which cannot be reached, would be waited for.
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} {socket.gethostname()}\n")
    (etc / "resolv.conf").write_text("")
    ip("netns", "add", name)
    ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("link", "set", name, "master", BRIDGE)
    ip("link", "set", name, "up")
    ip("-n", name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
    ip("-n", name, "link", "set", "eth0", "up")
    ip("-n", name, "link", "set", "lo", "up")


def _remove(machines: Sequence[NetworkMachine]) -> None:
    """Remove what there is of these machines, their processes included, and the bridge."""
    for machine in machines:
        if machine.namespace in ip("netns", "list").split():
            machine.kill()
            ip("netns", "delete", machine.namespace)
        _remove_link(machine.namespace)  # the kernel would take its time
        shutil.rmtree(CONFIGURED / machine.namespace, ignore_errors=True)
    with contextlib.suppress(OSError):  # others have files in it, or it is not there
        CONFIGURED.rmdir()
    _remove_link(BRIDGE)


def _remove_link(name: str) -> None:
    with contextlib.suppress(RuntimeError):  # it is not there, or the kernel was quicker
        ip("link", "delete", name)
