"""Append-only file that keeps what a full disk does not take in memory, and writes it once there is space."""

import logging
import os
import threading
from pathlib import Path

from edlm.storage_errors import is_full

log = logging.getLogger(__name__)


class PatientFile:
    """File of lines, each in it once and in order, also where the disk takes a part of a line only; for any threads."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("ab", buffering=0)
        self._unwritten, self._lock = bytearray(), threading.Lock()

    def fileno(self) -> int:
        return self._file.fileno()

    def append(self, line: bytes) -> None:
        """Write a line after all before it; while the disk is full, which is said once, keep it in memory with them."""
        with self._lock:
            full = bool(self._unwritten)
            self._unwritten += line
            try:
                self._write()
            except OSError as error:
                if not is_full(error):
                    raise
                if not full:
                    log.warning("%s; what comes is kept in memory until there is space", error)

    def sync(self) -> None:
        """Return when all lines are on the disk; raise OSError if it does not take them."""
        with self._lock:
            self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close the file; it is closed after an error, too."""
        try:
            self.sync()
        finally:
            self._file.close()

    def _write(self) -> None:
        while self._unwritten:
            try:
                written = self._file.write(self._unwritten)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            del self._unwritten[:written]  # perhaps a part of a line, which the next attempt completes
