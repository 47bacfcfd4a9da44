"""Scratch folders: local, removed at the end of the work in them, and swept up after a killed process."""

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

HELD = ".held"  # locked by the process that works in the folder; the kernel releases it however that process ends
ATTEMPTS, PAUSE_SECONDS = 5, 0.2  # to remove what another process still writes to; a later sweep has as many
log = logging.getLogger(__name__)


@contextmanager
def scratch(parent: Path, prefix: str, name: str = "", swept: Callable[[str], bool] = lambda _: True) -> Iterator[Path]:
    """Sweep up the folders of dead processes, then yield a new folder below `parent` that is removed at the end.

    Its name begins with `prefix` and `name`. Swept up are those below `parent` that begin with `prefix` and that are to
    be `swept`, by their names. What cannot be removed, as another process still writes to it, is left to a later sweep.

    A process may be killed at any instruction and leaves nothing that the next sweep passes over: the lock file is the
    first thing in the folder and the last to go. So a sweep may take a folder whose lock is about to be held; then
    another one is made.
    """
    for folder in parent.glob(f"{prefix}*"):
        if swept(folder.name):
            _sweep(folder)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix + name, dir=parent))
        held = _hold(folder)
        if held is not None:
            break
    with held:
        try:
            yield folder
        finally:
            _try_to_remove(folder)  # while it is still locked, so that no sweep interferes


def _hold(folder: Path) -> TextIO | None:
    """Return the locked file, or None if a sweep removed the folder before it was locked."""
    try:
        lock = (folder / HELD).open("w")
    except FileNotFoundError:
        return None
    with suppress(OSError):  # of a disk without locks, where no sweep can lock it either
        fcntl.flock(lock, fcntl.LOCK_EX)
    if (folder / HELD).exists():
        return lock
    lock.close()
    return None


def _sweep(folder: Path) -> None:
    try:
        if folder.lstat().st_uid != os.getuid():
            return
        lock = (folder / HELD).open()
    except FileNotFoundError:
        _remove_empty(folder)
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # its process is alive, or the disk has no locks
        if (folder / HELD).exists():
            _try_to_remove(folder)


def _try_to_remove(folder: Path) -> None:
    for _ in range(ATTEMPTS):
        try:
            _remove(folder)
        except OSError as error:
            log.info("%s cannot be removed: %s", folder, error)
            time.sleep(PAUSE_SECONDS)
        else:
            return


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != HELD:
            path.unlink()
    (folder / HELD).unlink()
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    """Remove the folder if it is there and empty."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
