"""Scratch folders: local, removed at the end of the work in them, and swept up after a killed process."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "edlm-stage-"
HELD = ".held"  # locked by the process that works in the folder; the kernel releases it however that process ends


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Sweep up the folders of dead processes, then yield a new temporary folder that is removed at the end."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
    new = folder / f"{HELD}.new"
    with new.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder / HELD)  # renamed only once locked, so that a sweep never finds it unlocked
        try:
            yield folder
        finally:
            shutil.rmtree(folder)  # while it is still locked, so that no sweep interferes


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
                continue  # its process is alive
            if held.exists():
                shutil.rmtree(held.parent)
