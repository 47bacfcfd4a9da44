"""Remote files: reads that survive a broken connection."""

import io
import logging
import time
from typing import Any

from fsspec import AbstractFileSystem

from edlm.config import ConfigurationError

WAITS = (1.0, 4.0, 16.0, 64.0)  # seconds before a file is reopened
_SKIPPED = 1 << 20  # bytes read at a time where a reopened file cannot seek
# Malformed, forbidden or deleted: another try gives the same.
_LASTING = (ValueError, PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_GONE = (404, 410)  # HTTP: not found, gone
PROGRAMMING_ERRORS = (
    TypeError, AttributeError, NameError, LookupError, ArithmeticError, AssertionError, ImportError,
    NotImplementedError,
)  # fmt: skip

log = logging.getLogger(__name__)


class UnreadableError(ConfigurationError):
    """A remote file could not be read any further."""


class RemoteFile(io.RawIOBase):
    """File of any file system but the local one.

    If a read fails, the file is reopened at the same byte, up to `len(WAITS)` times in succession; each time is logged.
    Raises UnreadableError naming file and byte after the last time, and at once if the file is no longer there, may not
    be read, or has changed its size. An error of the program is raised as it is.
    """

    def __init__(self, system: AbstractFileSystem, path: str, name: str) -> None:
        super().__init__()
        self._system, self._path, self._name = system, path, name
        self._file: Any = None
        self._size: int | None = None
        self._at = 0
        self._read(0)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the size is known, so that parquet can be read from its end."""
        return self._size is not None

    def tell(self) -> int:
        """Return the index of the next byte to read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, as `io.IOBase.seek` does; raise io.UnsupportedOperation if the size is unknown."""
        if self._size is None:
            raise io.UnsupportedOperation(f"{self._name} is a stream of unknown size")
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._file.seek(self._at)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into `buffer` and return their number, 0 at the end."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _read(self, count: int) -> bytes:
        for tries, wait in enumerate((*WAITS, None), 1):
            try:
                file = self._file or self._open()
                return file.read(count) if count else b""
            except PROGRAMMING_ERRORS:
                raise
            except Exception as error:  # every file system raises exceptions of its own, which are no OSError
                fault = f"{type(error).__name__}: {error}"
                if wait is None or self._lasts(error):
                    raise UnreadableError(
                        f"{self._name} cannot be read from byte {self._at:,} on "
                        f"(tried {'once' if tries == 1 else f'{tries} times'}: {fault})"
                    ) from error
                log.warning("%s: byte %d: %s; reading on from there in %g s", self._name, self._at, fault, wait)
                self._drop()
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _lasts(self, error: Exception) -> bool:
        """Return whether another try would give the same error.

        fsspec's HTTP file system raises FileNotFoundError whenever it cannot learn the size, such as from a server that
        is busy; the root of the error then has another status than 404, or none.
        """
        if isinstance(error, FileNotFoundError) and "http" in self._system.protocol:
            root: BaseException = error
            while root.__cause__ is not None:
                root = root.__cause__
            return isinstance(root, FileNotFoundError) or getattr(root, "status", None) in _GONE
        return isinstance(error, _LASTING)

    def _open(self) -> Any:
        """Open the file at the byte `_at`."""
        self._file = file = self._system.open(self._path, "rb")
        size = getattr(file, "size", None)
        if self._at and size != self._size:
            raise ConfigurationError(f"its size was {self._size} bytes and is {size}: it has changed")
        self._size = size
        if size is not None:
            file.seek(self._at)
        else:
            left = self._at
            while left and (part := file.read(min(left, _SKIPPED))):
                left -= len(part)
            if left:
                raise ConfigurationError("it has become shorter: it has changed")
        return file
