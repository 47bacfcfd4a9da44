"""Local files that are written whole or not at all, and that a power cut does not take."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE, SHARED = 0o600, 0o644  # for this user alone, and for the other users of a shared disk to read


@contextmanager
def replacing(target: Path, mode: int = SHARED) -> Iterator[Path]:
    """Yield the path of an empty file beside `target`, which takes its place, on the disk, at the end of the context.

    A reader of `target` sees the old content or the new one. After an error the old one stays, and nothing else.

    Examples:
        >>> target = Path(tempfile.mkdtemp(), "a.txt")
        >>> with replacing(target) as new:
        ...     _ = new.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
