"""Lease on a workspace: one process at a time writes there, and one that died does not keep others out.

A lease is a numbered file in the workspace that its holder renews. The holder of the highest number has the workspace.
Another process takes over by creating the next number, which the store lets only one of them do, once the holder has
renewed nothing for `EXPIRY` seconds (of the observer's clock: machines' clocks are not compared), or at once if the
holder was a process of the same machine that has ended.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from edlm.config import ConfigurationError
from edlm.file_systems import file_system
from edlm.storage import StorageError, join, read_text, write_text

RENEWAL = 10.0  # seconds between a holder's renewals
EXPIRY = 60.0  # seconds without a renewal after which a lease can be taken over
STALE = 10 * EXPIRY  # after which `seems_held` says no, by the store's clock and this machine's, which may differ
POLL = 1.0
FOLDER = "lease"
log = logging.getLogger(__name__)


class LeaseHeld(ConfigurationError):
    """Error for a workspace that another process writes to."""


class LeaseLost(StorageError):
    """Error for a holder whose workspace another process has taken over."""


@dataclass(frozen=True)
class LeaseHolder:
    """Content of a lease's file."""

    key: str
    """Unlike that of all other leases."""
    machine: str
    pid: int
    began: str
    """Of the process, by the machine's boot; tells it from a later process with its number."""
    since: str
    """ISO 8601."""
    renewals: int = 0
    host: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class Lease:
    """A lease that this process took: plain data, which its workers can check."""

    workspace: str
    number: int
    key: str

    def require(self) -> None:
        """Raise LeaseLost unless the workspace is still this lease's; call it before anything is overwritten."""
        newest = _newest(self.workspace)
        if newest is not None and newest[0] == self.number and newest[1].key == self.key:
            return
        by = "its lease is gone" if newest is None else f"it is now written by {newest[1]}"
        raise LeaseLost(f"this command no longer owns {self.workspace}: {by}; nothing more is written there")


@contextmanager
def leased(workspace: str) -> Iterator[Lease]:
    """Hold the workspace while the context is open, and renew the lease in the background.

    Raise LeaseHeld, naming the holder, if another process has it. Where the holder does not run on this machine, that
    takes up to `RENEWAL` seconds, and taking over from one that died takes `EXPIRY` seconds.
    """
    lease, holder = _take(workspace)
    done = threading.Event()

    def renew() -> None:
        renewed = holder
        while not done.wait(RENEWAL):
            try:
                lease.require()
                renewed = replace(renewed, renewals=renewed.renewals + 1)
                write_text(_uri(workspace, lease.number), _text(renewed))
            except LeaseLost as error:
                log.error("%s", error)
                return
            except Exception as error:  # a store that is away has errors of many classes; it is tried again
                log.warning("the lease on %s could not be renewed: %s", workspace, error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join(RENEWAL)
        _release(lease)


def seems_held(workspace: str) -> bool:
    """Return, without waiting, whether a process may have the workspace: then `leased` waits, or is refused."""
    newest = _newest(workspace)
    if newest is None:
        return False
    number, holder = newest
    if holder.machine == _this_process().machine:
        return _began(holder.pid) == holder.began
    system, path = file_system(_uri(workspace, number))
    try:
        return (datetime.now(UTC) - system.modified(path)).total_seconds() < STALE
    except FileNotFoundError:
        return False  # released just now


def _take(workspace: str) -> tuple[Lease, LeaseHolder]:
    while True:
        newest = _newest(workspace)
        if newest is not None:
            _wait_until_expired(workspace, *newest)
        number = 1 if newest is None else newest[0] + 1
        holder = _this_process()
        if not _create(_uri(workspace, number), _text(holder)):
            continue  # another process was quicker
        lease = Lease(workspace, number, holder.key)
        lease.require()  # where a store cannot create conditionally, the last of two has it
        _remove(workspace, [earlier for earlier in _numbers(workspace) if earlier < number])
        return lease, holder


def _wait_until_expired(workspace: str, number: int, holder: LeaseHolder) -> None:
    """Return once the holder has ended or renewed nothing for `EXPIRY` seconds; raise LeaseHeld if it lives."""
    mine = _this_process()
    held = LeaseHeld(f"{workspace} is written by {holder}: wait until that command has ended, or stop it")
    if holder.machine == mine.machine:
        if _began(holder.pid) == holder.began:
            raise held
        return
    log.warning("%s is written by %s; waiting whether it still runs", workspace, holder)
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        newest = _newest(workspace)
        if newest is None:
            return
        if newest != (number, holder):
            raise held
        time.sleep(POLL)


def _release(lease: Lease) -> None:
    try:
        lease.require()
        _remove(lease.workspace, [lease.number])
    except Exception as error:  # it expires
        log.warning("the lease on %s was not released: %s", lease.workspace, error)


def _this_process() -> LeaseHolder:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    pid = os.getpid()
    return LeaseHolder(secrets.token_hex(8), _machine(), pid, _began(pid) or "", now, host=socket.gethostname())


def _machine() -> str:
    """Return an identity of the space in which process numbers are unique: this boot of this machine or container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)  # not Linux: processes cannot be told apart, so only renewals count


def _began(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks since boot; None if it is not there, or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _text(holder: LeaseHolder) -> str:
    return json.dumps(asdict(holder))


def _newest(workspace: str) -> tuple[int, LeaseHolder] | None:
    for number in reversed(_numbers(workspace)):
        try:
            return number, LeaseHolder(**json.loads(read_text(_uri(workspace, number))))
        except FileNotFoundError:
            continue  # released just now
        except (ValueError, TypeError) as error:
            raise StorageError(f"{_uri(workspace, number)} is damaged ({error}); delete it") from error
    return None


def _numbers(workspace: str) -> list[int]:
    system, root = file_system(join(workspace, FOLDER))
    system.invalidate_cache(root)
    try:
        names = [path.rpartition("/")[2] for path in system.ls(root, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json") and name[:-5].isdigit())


def _remove(workspace: str, numbers: list[int]) -> None:
    for number in numbers:
        system, path = file_system(_uri(workspace, number))
        try:
            system.rm_file(path)
        except FileNotFoundError:
            continue  # another process removed it


def _create(uri: str, text: str) -> bool:
    """Write a new file whole; return False if there is one."""
    system, path = file_system(uri)
    if isinstance(system, LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{secrets.token_hex(8)}"
        write_text(str(temporary), text)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        system.pipe_file(path, text.encode(), mode="create")
    except FileExistsError:
        return read_text(uri) == text  # by a request of this process whose answer was lost
    return True


def _uri(workspace: str, number: int) -> str:
    return join(workspace, FOLDER, f"{number:06d}.json")
