"""Journal of a run: every entry is written here, in order, before it is sent anywhere else."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edlm.storage import join

ENTRIES = "journal.jsonl"
FILES = "files"
log = logging.getLogger(__name__)


class Journal:
    """Append-only file of JSON lines in `folder`, with the files that its entries name beside it.

    One process writes it, any may `read` it. Opening it again continues it; an incomplete line left by a crash is
    truncated. Raises ValueError if the folder holds the journal of another run.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ENTRIES
        path.touch()
        valid_bytes = 0
        for entry, stop in read(folder):
            if valid_bytes == 0 and entry.get("run") != run_id:
                raise ValueError(
                    f"{path} is the journal of run {entry.get('run')}, not of {run_id}; give it another folder"
                )
            valid_bytes = stop
        torn_bytes = path.stat().st_size - valid_bytes
        if torn_bytes:
            log.warning("%s: removed the last %d bytes, an incomplete entry after a crash", path, torn_bytes)
            os.truncate(path, valid_bytes)
        self._file = path.open("ab")
        if valid_bytes == 0:
            self._write({"run": run_id})

    def append(self, kind: str, **content: Any) -> None:
        """Append an entry, which survives a crash of the process, and after `close` also a power failure."""
        self._write({"kind": kind, "time": time.time_ns() // 1_000_000, **content})

    def place(self, name: str) -> Path:
        """Return the path at which to write the file `name` before an entry names it."""
        path = Path(join(str(self.folder), FILES, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        """Write every entry to disk and close the journal."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


def read(folder: Path, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the entries from byte `start` on, each with its end offset; stop before an incomplete or damaged line."""
    with (folder / ENTRIES).open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(entry, dict):
                return
            yield entry, start


def run_of(folder: Path) -> str | None:
    """Return the run id of the journal in `folder`; None if not even the first line is complete."""
    first = next(read(folder), None)
    return first[0].get("run") if first else None


def history(folder: Path) -> dict[str, dict[int, float]]:
    """Return the values of every metric by step; of a repeated step, the first value."""
    metrics: dict[str, dict[int, float]] = {}
    for entry, _ in read(folder):
        if entry.get("kind") == "metrics":
            for name, value in entry["values"].items():
                metrics.setdefault(name, {}).setdefault(entry["step"], value)
    return metrics
