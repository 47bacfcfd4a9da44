"""Compressed files, read as a stream of what they hold."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow
from fsspec import AbstractFileSystem

from edlm.config import ConfigurationError

BUFFER = 1 << 20  # bytes


@dataclass(frozen=True)
class Compression:
    """A way of compressing files: its name, and what turns a compressed stream into a plain one."""

    name: str
    unpack: Callable[[Any], Any]


COMPRESSIONS = {
    ".gz": Compression("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    ".bz2": Compression("bzip2", bz2.BZ2File),
    ".xz": Compression("xz", lzma.LZMAFile),
    # Arrow's reader and not that of `zstandard`, which takes a truncated file for a whole one.
    ".zst": Compression("Zstandard", lambda file: pyarrow.CompressedInputStream(file, "zstd")),
}
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)


def uncompressed(path: str) -> tuple[str, Compression | None]:
    """Return `path` without the ending of a compression, and that compression, whatever the case of its letters."""
    for ending, compression in COMPRESSIONS.items():
        if path.lower().endswith(ending):
            return path[: -len(ending)], compression
    return path, None


@contextmanager
def opened(system: AbstractFileSystem, path: str, name: str) -> Iterator[io.BufferedReader]:
    """Open a file for reading, unpacked where its ending says that it is compressed.

    Raises ConfigurationError, also out of the block, where the file cannot be read, is damaged or is truncated.
    """
    compression = uncompressed(path)[1]
    try:
        with system.open(path, "rb") as raw:
            plain: Any = raw if compression is None else compression.unpack(raw)
            # Through a buffer of our own: remote files know no bound for a line, and look for its end in Python.
            with io.BufferedReader(plain, BUFFER) as file:
                yield file
    except _FAULTS as error:
        if compression is None:
            raise ConfigurationError(f"{name} cannot be read, or is damaged: {error}") from error
        raise ConfigurationError(
            f"{name} is no {compression.name} file, or is truncated or damaged ({error}); copy it again"
        ) from error
