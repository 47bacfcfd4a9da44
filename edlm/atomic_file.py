"""Local files that are written whole or not at all, and that a power cut does not take."""

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished"  # ends the names of the files that have not taken their places
PRIVATE, SHARED = 0o600, 0o644  # for this user alone, and for the other users of a shared disk to read


@contextmanager
def replacing(target: Path, mode: int = SHARED) -> Iterator[Path]:
    """Yield the path of an empty file beside `target`, which takes its place, on the disk, at the end of the context.

    A reader of `target` sees the old content or the new one. After an error the old one stays, and nothing else. What a
    killed process has left of its write is removed by the next write to the same folder, if the disk has locks. They
    must reach every host that writes there.

    Examples:
        >>> target = Path(tempfile.mkdtemp(), "a.txt")
        >>> with replacing(target) as new:
        ...     _ = new.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    temporary, held = _held(target)
    with held:
        try:
            yield temporary
            with temporary.open("rb") as file:  # which may be another one by now
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def put(target: Path, content: bytes) -> None:
    """Write `content` to `target`; a reader sees the old content or the new one, unless the power fails meanwhile.

    For very many small files: it neither waits for the disk, as `replacing` does, nor lists the folder. What a killed
    process leaves of its write stays there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, SHARED)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _held(target: Path) -> tuple[Path, BinaryIO]:
    """Return a new file beside `target`, and the open file that locks it; a killed process's lock ends with it."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent)
        held = os.fdopen(descriptor, "r+b")  # NFS locks no reader exclusively
        with suppress(OSError):  # of a disk without locks, where no sweep can lock it either
            fcntl.flock(held, fcntl.LOCK_EX)
        if os.path.exists(name):  # no sweep came before the lock
            return Path(name), held
        held.close()


def _sweep(folder: Path) -> None:
    """Remove the unfinished files of a folder that no process holds."""
    for path in folder.glob(f".*{UNFINISHED}"):
        # An error means that the file has taken its place, is being written, or is another user's.
        with suppress(OSError), path.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def sync(folder: Path, names: Iterable[str]) -> None:
    """Return when these files below a folder are on the disk, with their places in the folders between."""
    files = [folder / name for name in names]
    for path in dict.fromkeys([*files, folder, *(above for file in files for above in file.parents)]):
        if path.is_relative_to(folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
