"""Local cache: folders of verified content by digest, in one private folder of limited size, shared by processes.

A cache holds, per entry, `DIGEST/` with the content, `DIGEST.json`, a stamp of the files as they were when they were
verified, and `DIGEST.lock`, which is locked (shared) by every process that uses the entry, and exclusively by one that
makes or removes it. The kernel releases a lock however its process ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edlm.atomic_file import PRIVATE, replacing
from edlm.config import ConfigurationError

FOLDER_VARIABLE, LIMIT_VARIABLE = "EDLM_CACHE", "EDLM_CACHE_GB"
LIMIT_GB = 100.0  # 10^9 bytes each, unless the environment says otherwise
STAMPS = "verified"  # folder of the stamps of folders elsewhere, which are used in place
MOST_STAMPS = 1000
DIGEST = re.compile("[0-9a-f]{64}")
log = logging.getLogger(__name__)


class EntrySource(Protocol):
    """Where the content of an entry comes from, and what it must be."""

    @property
    def bytes(self) -> int:
        """About how many bytes `copy_to` writes."""
        ...

    def copy_to(self, folder: Path) -> None:
        """Write the content into an empty folder."""
        ...

    def check(self, folder: Path) -> None:
        """Raise ValueError unless the folder holds the content."""
        ...


_held: dict[Path, contextlib.ExitStack] = {}


@dataclass(frozen=True)
class LocalCache:
    """Cache in `folder`, which is made with mode 0700 and may be accessed by this user only."""

    folder: Path
    limit_bytes: float = LIMIT_GB * 1e9

    @contextmanager
    def entry(self, digest: str, source: EntrySource) -> Iterator[Path]:
        """Hold the folder of an entry while the context is open: no process evicts it meanwhile.

        If there is none, or it is damaged, it is copied from the source, which is not asked otherwise. A copy is
        checked once, and again only after a file of it has changed. Raises the errors of the source, and
        ConfigurationError if other users can access the cache, or if its disk is full.
        """
        make_private(self.folder)
        self._sweep()
        copy = self.folder / digest
        while True:
            lock = _locked(self._lock_file(digest), fcntl.LOCK_SH)
            try:
                if self._is_intact(copy, source):
                    os.utime(_stamp_file(copy))  # the time of its last use
                    yield copy
                    return
            finally:
                os.close(lock)
            self._make(digest, source)

    def require(self, folder: Path, identity: str, check: Callable[[Path], None]) -> None:
        """Check a folder that is used in place, unless it was and no file of it has changed since.

        Of the processes that ask at the same time, one checks and the others wait for it. `identity` names what the
        folder must hold. Raises the errors of `check`.
        """
        stamp = self.folder / STAMPS / f"{hashlib.sha256(f'{folder.resolve()} {identity}'.encode()).hexdigest()}.json"
        lock_file = stamp.with_suffix(".lock")
        try:
            make_private(self.folder)
            make_private(stamp.parent)
            if _read(stamp) == _state(folder):
                return
            lock = _locked(lock_file, fcntl.LOCK_EX)
        except (OSError, ConfigurationError) as error:  # reading everything takes longer, and is as safe
            log.info("%s is read again at each start, because there is no place for a stamp: %s", folder, error)
            check(folder)
            return
        try:
            state = _state(folder)
            if _read(stamp) == state:  # of another process, which this one waited for
                return
            check(folder)
            _write(stamp, state)
            for old in sorted(stamp.parent.glob("*.json"), key=_last_used)[:-MOST_STAMPS]:
                old.unlink(missing_ok=True)
        finally:
            lock_file.unlink(missing_ok=True)  # before it is released: one that waits makes a new file (`_locked`)
            os.close(lock)

    def holds(self, digest: str) -> bool:
        """Return whether there is a copy, intact or not."""
        return (self.folder / digest).is_dir()

    def hold(self, digest: str, source: EntrySource) -> Path:
        """Return the folder of an `entry`, which this process holds until it ends."""
        key = self.folder / digest
        if (earlier := _held.pop(key, None)) is not None:
            earlier.close()  # if the copy is damaged, it is made again, which nothing that holds it may prevent
        with contextlib.ExitStack() as stack:
            copy = stack.enter_context(self.entry(digest, source))
            _held[key] = stack.pop_all()
        return copy

    def _make(self, digest: str, source: EntrySource) -> None:
        """Make the entry, unless another process has made it first."""
        copy, partial = self.folder / digest, self.folder / f"{digest}.partial"
        lock = self._exclusive(digest)
        try:
            if self._is_intact(copy, source):
                return
            self._remove(digest)
            self._make_room(source.bytes)
            partial.mkdir()
            try:
                source.copy_to(partial)
                state = _state(partial)  # before the check: a later change is not vouched for
                source.check(partial)
                os.replace(partial, copy)
                _write(_stamp_file(copy), state)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ConfigurationError(
                    f"{self.folder} has no room for {source.bytes / 1e9:.3g} GB ({error.strerror}); free some, or "
                    f"name a folder on another disk with {FOLDER_VARIABLE}"
                ) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        finally:
            os.close(lock)

    def _exclusive(self, digest: str) -> int:
        try:
            return _locked(self._lock_file(digest), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for a process that makes or uses %s", self.folder / digest)
            return _locked(self._lock_file(digest), fcntl.LOCK_EX)

    def _is_intact(self, copy: Path, source: EntrySource) -> bool:
        """Return whether a complete copy is there; its files are read only if its stamp does not fit them."""
        if not copy.is_dir():
            return False
        state = _state(copy)
        if _read(_stamp_file(copy)) == state:
            return True
        try:
            source.check(copy)
        except ValueError as error:
            log.warning("the copy %s is replaced: %s", copy, error)
            return False
        _write(_stamp_file(copy), state)
        return True

    def _make_room(self, size: int) -> None:
        """Evict the entries whose last use is longest ago, but none that a process holds, until `size` bytes fit."""
        entries = self._entries()
        total = size + sum(entries.values())
        for digest in sorted(entries, key=lambda name: _last_used(_stamp_file(self.folder / name))):
            if total <= self.limit_bytes:
                return
            if self._evict(digest):
                total -= entries[digest]
        if total > self.limit_bytes:
            log.warning(
                "%s has %.3g GB, more than its limit of %.3g (%s): all that is left is in use",
                self.folder, total / 1e9, self.limit_bytes / 1e9, LIMIT_VARIABLE,
            )  # fmt: skip

    def _entries(self) -> dict[str, int]:
        """Return the bytes of each entry, whole or partial, by its digest."""
        sizes: dict[str, int] = {}
        for path in self.folder.iterdir():
            digest = path.name.removesuffix(".partial")
            if DIGEST.fullmatch(digest) and path.is_dir():
                with contextlib.suppress(FileNotFoundError):  # another process evicts it just now
                    sizes[digest] = sizes.get(digest, 0) + sum(size for _, size, *_ in _state(path))
        return sizes

    def _evict(self, digest: str) -> bool:
        """Remove an entry unless a process holds it, and return whether it was removed."""
        try:
            lock = _locked(self._lock_file(digest), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            self._remove(digest)
            self._lock_file(digest).unlink(missing_ok=True)
        finally:
            os.close(lock)
        return True

    def _remove(self, digest: str) -> None:
        """Remove what there is of an entry whose exclusive lock is held: the stamp first, it vouches for the rest."""
        copy = self.folder / digest
        _stamp_file(copy).unlink(missing_ok=True)
        for path in (copy, self.folder / f"{digest}.partial"):
            if path.exists():
                shutil.rmtree(path)

    def _sweep(self) -> None:
        """Remove the partial copies that no process makes any more."""
        for partial in self.folder.glob("*.partial"):
            digest = partial.name.removesuffix(".partial")
            if not DIGEST.fullmatch(digest):
                continue
            try:
                lock = _locked(self._lock_file(digest), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            try:
                if partial.exists():
                    shutil.rmtree(partial)
                if not (self.folder / digest).exists():
                    self._lock_file(digest).unlink(missing_ok=True)
            finally:
                os.close(lock)

    def _lock_file(self, digest: str) -> Path:
        return self.folder / f"{digest}.lock"


def default_cache() -> LocalCache:
    """Return this user's cache on this machine: EDLM_CACHE, else `cache` in a local EDLM_HOME, else ~/.cache/edlm.

    XDG_CACHE_HOME replaces ~/.cache; EDLM_CACHE_GB sets the limit in 10^9 bytes. Raise ConfigurationError if that is no
    number, or if there is no such folder because the user has no home.
    """
    given = os.environ.get(LIMIT_VARIABLE, str(LIMIT_GB))
    try:
        limit = float(given)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ConfigurationError(f"{LIMIT_VARIABLE}: {given!r} is not a number of gigabytes above 0")
    return LocalCache(_default_folder(), limit * 1e9)


def make_private(folder: Path) -> None:
    """Make the folder with mode 0700. Raise ConfigurationError unless it belongs to this user and has that mode.

    A user with write access could replace a verified file before it is read.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = stat.S_IMODE(folder.stat().st_mode)
    other_owners = {folder.stat().st_uid, folder.lstat().st_uid} - {os.getuid()}  # of the folder or a link to it
    if other_owners:
        raise ConfigurationError(
            f"cache: {folder} belongs to user {other_owners.pop()}, but this process runs as user {os.getuid()}; "
            f"name another folder with {FOLDER_VARIABLE}, or remove that one"
        )
    if mode & 0o077:
        raise ConfigurationError(
            f"cache: {folder} has mode {mode:o}, so that other users can access it; run `chmod 700 {folder}`, or name "
            f"another folder with {FOLDER_VARIABLE}"
        )


def _default_folder() -> Path:
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser().resolve()
    home = os.environ.get("EDLM_HOME", "").removeprefix("file://")
    if home and "://" not in home:
        return Path(home).expanduser().resolve() / "cache"
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "edlm"
    try:
        return Path.home() / ".cache" / "edlm"
    except RuntimeError as error:
        raise ConfigurationError(
            f"{FOLDER_VARIABLE}: missing, and this user has no home folder; name a folder for copies of remote files"
        ) from error


def _locked(path: Path, operation: int) -> int:
    """Return a descriptor of the locked file. Raise BlockingIOError if it is not to be waited for."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, operation)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # an eviction removed the file between the two lines
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _state(folder: Path) -> list[list]:
    """Return name, size, both times and identity of every file: a file that was written to has another state."""
    rows = []
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            name = path.relative_to(folder).as_posix()
            rows.append([name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino])
    return rows


def _stamp_file(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


def _read(stamp: Path) -> object:
    """Return the state in a stamp; None if there is none, or none that can be read."""
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError):
        return None


def _write(stamp: Path, state: list[list]) -> None:
    with replacing(stamp, PRIVATE) as new:
        new.write_text(json.dumps(state))


def _last_used(stamp: Path) -> float:
    """Return when a stamp was last renewed; 0 for a copy without one, which is the first to go."""
    try:
        return stamp.stat().st_mtime
    except FileNotFoundError:
        return 0.0
