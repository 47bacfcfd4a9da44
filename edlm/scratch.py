"""Scratch folders: local, removed at the end of the work in them, and swept up after a killed process."""

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

HELD = ".held"  # locked by the process that works in the folder; the kernel releases it however that process ends
ATTEMPTS, PAUSE_SECONDS = 5, 0.2  # to remove what another process still writes to; a later sweep has as many
log = logging.getLogger(__name__)


@contextmanager
def scratch(name: str, prefix: str = "edlm-stage-", parent: str | None = None) -> Iterator[Path]:
    """Sweep up the folders of dead processes, then yield a new temporary folder that is removed at the end.

    It is below `parent`, else in the folder for temporary files; those whose names begin with `prefix` are swept up.
    What cannot be removed, as another process still writes to it, is left to a later sweep.

    A process may be killed at any instruction and leaves nothing that the next sweep passes over: the lock file is the
    first thing in the folder and the last to go. So a sweep may take a folder whose lock is about to be held; then
    another one is made.
    """
    _sweep(Path(parent or tempfile.gettempdir()), prefix)
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
    fcntl.flock(lock, fcntl.LOCK_EX)
    if (folder / HELD).exists():
        return lock
    lock.close()
    return None


def _sweep(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = (folder / HELD).open()
        except FileNotFoundError:
            _remove_empty(folder)
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its process is alive
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
