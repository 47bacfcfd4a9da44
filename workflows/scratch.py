"""Scratch: a local folder that lasts as long as the work in it, and is swept up after a process that was killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "edlm-stage-"
HELD = ".held"  # locked by the process that works in the folder; the kernel lets go of it however that process ends


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder in the system's temporary one, removed at the end; first, those that dead processes left are removed."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
    new = folder / f"{HELD}.new"
    with new.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder / HELD)  # named only now: a sweep never finds a lock that its process has not taken yet
        try:
            yield folder
        finally:
            shutil.rmtree(folder)  # while it is locked: no sweep comes between


def _sweep() -> None:
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{HELD}"):
        try:
            lock = held.open()
        except FileNotFoundError:
            continue  # its process, or another sweep, has just removed it
        with lock:
            if os.fstat(lock.fileno()).st_uid != os.getuid():
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its process lives
            if held.exists():
                shutil.rmtree(held.parent)
