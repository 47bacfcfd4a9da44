"""Journal of a run: every entry is written here, in order, before it is sent anywhere else.

A line is a JSON object that ends with the CRC-32 of what precedes it, so that a damaged line is passed over and the
lines after it are read.
"""

import fcntl
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.tracking.patient_file import PatientFile
from cluster.tracking.run_record import RunRecord
from edlm.config import ConfigurationError
from edlm.storage import join

ENTRIES = "entries.jsonl"
FILES = "files"
MARKS = "shipped-*"  # what MLflow has of the journal (`cluster.tracking.shipping_mark`)
CHECKSUM_BYTES = len(', "crc32": "00000000"}\n')
HOLD_ATTEMPTS, HOLD_SECONDS = 3, 0.02
TAIL_BYTES = 2**20  # read at the end of a journal for its last entry
log = logging.getLogger(__name__)

Entry = dict[str, Any]


class Journal:
    """Append-only file of numbered, checksummed JSON lines in `folder`, with the files that they name beside it.

    One process writes it, any may `read` it. Opening it again continues it: an incomplete line left by a crash is
    truncated, and the record of the run is written again, so that no damage to one line loses it. Raises ValueError if
    the folder holds the journal of another run, and ConfigurationError if its file system has no locks.
    """

    def __init__(self, folder: Path, run: RunRecord) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ENTRIES
        if path.exists():
            _truncate_incomplete(path)
            earlier = record_of(folder)
            if earlier is not None and earlier.key != run.key:
                raise ValueError(f"{path} is the journal of run {earlier.key}, not of {run.key}; give another folder")
        elif marks := list(folder.glob(MARKS)):
            log.warning("%s is gone; the journal begins again, and what it had and MLflow has not is lost", path)
            for mark in marks:
                mark.unlink()
        self._number = _last_number(path) + 1
        self._file = PatientFile(path)
        try:
            _hold(self._file.fileno(), fcntl.LOCK_EX, path)
        except ConfigurationError:
            self._file.close()
            raise
        self.append("run", record=asdict(run))

    def append(self, kind: str, **content: Any) -> None:
        """Append an entry, which survives a crash of the process, and after `sync` also a power failure.

        On a full disk it is kept in memory, and written before the next one once there is space.
        """
        entry = {"kind": kind, "number": self._number, "time": time.time_ns() // 1_000_000, **content}
        self._file.append(encode(entry))
        self._number += 1

    def place(self, name: str) -> Path:
        """Return the path at which to write the file `name` before an entry names it."""
        path = Path(join(str(self.folder), FILES, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sync(self) -> None:
        """Write every entry to disk, or raise OSError; from any thread."""
        self._file.sync()

    def close(self) -> None:
        """Write every entry to disk, or raise OSError, and close the journal."""
        self._file.close()


def encode(entry: Entry) -> bytes:
    """Return the line of an entry, with its checksum."""
    body = json.dumps(entry).encode()
    return body[:-1] + b', "crc32": "%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> Entry | None:
    """Return the entry of a complete line; None if the line is damaged."""
    body = line[:-CHECKSUM_BYTES] + b"}"
    if line[-CHECKSUM_BYTES:] != b', "crc32": "%08x"}\n' % zlib.crc32(body):
        return None
    return json.loads(body)


def lines(folder: Path, start: int = 0, containing: bytes = b"") -> Iterator[tuple[Entry | None, int]]:
    """Yield the entry of every complete line from byte `start` on, None for a damaged line, each with its end offset.

    A line without `containing` is not decoded: its entry is empty.
    """
    with (folder / ENTRIES).open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written
            start += len(line)
            yield (decode(line) if containing in line else {}), start


def read(folder: Path) -> Iterator[Entry]:
    """Yield every intact entry, in order."""
    return (entry for entry, _ in lines(folder) if entry is not None)


def record_of(folder: Path) -> RunRecord | None:
    """Return the record of the run in `folder`; None if there is no journal, or no intact record in it."""
    if not (folder / ENTRIES).exists():
        return None
    entries = (entry for entry, _ in lines(folder, containing=b'"record"') if entry and entry["kind"] == "run")
    entry = next(entries, None)
    return RunRecord.parse(entry["record"]) if entry else None


def history(folder: Path) -> dict[str, dict[int, float]]:
    """Return the values of every metric by step; of a repeated step, the first value. Empty if there is no journal."""
    metrics: dict[str, dict[int, float]] = {}
    for entry in read(folder) if (folder / ENTRIES).exists() else ():
        if entry["kind"] == "metrics":
            for name, value in entry["values"].items():
                metrics.setdefault(name, {}).setdefault(entry["step"], value)
    return metrics


def complete_bytes(folder: Path) -> int:
    """Return the end of the last complete line in `folder`; 0 if there is no journal."""
    path = folder / ENTRIES
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return 0
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read()
        if b"\n" not in tail:
            file.seek(0)
            tail = file.read()
    return size - len(tail) + tail.rfind(b"\n") + 1


def is_open(folder: Path) -> bool:
    """Return whether a living process writes the journal in `folder`."""
    with (folder / ENTRIES).open("rb") as file:
        return not _hold(file.fileno(), fcntl.LOCK_SH, folder / ENTRIES)  # NFS locks no reader exclusively


def sync(folder: Path) -> None:
    """Write what the journal holds to disk, whichever process wrote it."""
    with (folder / ENTRIES).open("rb") as file:
        os.fsync(file.fileno())


def _hold(descriptor: int, operation: int, path: Path) -> bool:
    """Lock the file for as long as the descriptor is open; return False if another process keeps it locked.

    Raises ConfigurationError if there are no locks at its place.
    """
    for _ in range(HOLD_ATTEMPTS):
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(HOLD_SECONDS)  # `is_open` of another process holds it for a moment
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be locked ({error.strerror}), so that no other command could know whether it is still "
                "written; mount its file system with locks (flock), or give outputs elsewhere with --storage"
            ) from error
        else:
            return True
    return False


def _truncate_incomplete(path: Path) -> None:
    complete = complete_bytes(path.parent)
    if incomplete := path.stat().st_size - complete:
        log.warning("%s: removed the last %d bytes, an incomplete entry after a crash", path, incomplete)
        os.truncate(path, complete)


def _last_number(path: Path) -> int:
    """Return the number of the last intact entry; -1 if there is none."""
    if not path.exists():
        return -1
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read().splitlines(keepends=True)
    for line in reversed(tail):
        if (entry := decode(line)) is not None:
            return entry["number"]
    return -1 if size <= TAIL_BYTES else max((entry["number"] for entry in read(path.parent)), default=-1)
