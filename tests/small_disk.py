"""A real disk of some kilobytes, which fills up: a tmpfs in a mount namespace, which ends with its process."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILLER = "filler"
MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && exec cat'


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Yield the way to a new disk, mounted on `folder` for a process that only waits."""
    folder.mkdir()
    command = ["unshare", "--mount", "sh", "-c", MOUNT, str(folder), size]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "mounted\n":
            pytest.skip("unshare and mount need root")
        yield seen_by(process.pid, folder)
        process.stdin.close()


def seen_by(process: int, path: Path) -> Path:
    """Return the way to what a process sees as `path`."""
    return Path(f"/proc/{process}/root{path}")


def fill(disk: Path, besides: int = 0) -> None:
    """Fill a disk but for some bytes; of the last blocks of files there, what they have room for is left."""
    with (disk / FILLER).open("ab", buffering=0) as file:
        file.write(bytes(max(0, room(disk) - besides)))


def room(disk: Path) -> int:
    """Return how many bytes of a disk are free."""
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize


def free(disk: Path) -> None:
    """Make the room again that was filled."""
    (disk / FILLER).unlink()
