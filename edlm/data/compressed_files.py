"""Compressed files, read as decompressed streams."""

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
from fsspec.implementations.local import LocalFileSystem

from edlm.config import ConfigurationError
from edlm.data.remote_files import RemoteFile

BUFFER = 1 << 20  # bytes


@dataclass(frozen=True)
class Compression:
    """Compression format: its name, and a function that turns a compressed stream into a plain one."""

    name: str
    unpack: Callable[[Any], Any]


COMPRESSIONS = {
    ".gz": Compression("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    ".bz2": Compression("bzip2", bz2.BZ2File),
    ".xz": Compression("xz", lzma.LZMAFile),
    # Arrow's reader, because that of `zstandard` accepts a truncated file as complete.
    ".zst": Compression("Zstandard", lambda file: pyarrow.CompressedInputStream(file, "zstd")),
}
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)


def uncompressed(path: str) -> tuple[str, Compression | None]:
    """Return `path` without a compression suffix, and that compression or None; the suffix ignores case."""
    for ending, compression in COMPRESSIONS.items():
        if path.lower().endswith(ending):
            return path[: -len(ending)], compression
    return path, None


@contextmanager
def opened(system: AbstractFileSystem, path: str, name: str) -> Iterator[io.BufferedReader]:
    """Open a file for reading; decompress it if its suffix names a compression.

    Raises ConfigurationError, also from within the `with` block, if the file is unreadable, damaged or truncated; for a
    file that is not local, UnreadableError after the tries of `RemoteFile`.
    """
    compression = uncompressed(path)[1]
    try:
        with _raw(system, path, name) as raw:
            plain: Any = raw if compression is None else compression.unpack(raw)
            # Buffer here: remote files do not bound the length of a line, and search for its end in Python.
            with io.BufferedReader(plain, BUFFER) as file:
                yield file
    except _FAULTS as error:
        if compression is None:
            raise ConfigurationError(f"{name} cannot be read, or is damaged: {error}") from error
        raise ConfigurationError(
            f"{name} is no {compression.name} file, or is truncated or damaged ({error}); copy it again"
        ) from error


def _raw(system: AbstractFileSystem, path: str, name: str) -> Any:
    return system.open(path, "rb") if isinstance(system, LocalFileSystem) else RemoteFile(system, path, name)
