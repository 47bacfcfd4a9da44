"""A run's journal: everything that is said about a run stands here, in order, before anyone else hears of it."""

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
    """An append-only file of JSON lines in `folder`, and beside it the files that its entries name.

    One process writes it, any may `read` it. Opening it again continues it; a line that a crash tore is cut off.
    Raises ValueError where the folder keeps another run's journal.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ENTRIES
        path.touch()
        sound = 0
        for entry, stop in read(folder):
            if sound == 0 and entry.get("run") != run_id:
                raise ValueError(
                    f"{path} is the journal of run {entry.get('run')}, not of {run_id}; give it another folder"
                )
            sound = stop
        torn = path.stat().st_size - sound
        if torn:
            log.warning("%s: the last %d bytes, torn by a crash, are cut off", path, torn)
            os.truncate(path, sound)
        self._file = path.open("ab")
        if sound == 0:
            self._write({"run": run_id})

    def append(self, kind: str, **content: Any) -> None:
        """Afterwards the journal ends with this entry; it outlives the process, and after `close` a power cut too."""
        self._write({"kind": kind, "time": time.time_ns() // 1_000_000, **content})

    def place(self, name: str) -> Path:
        """Where to put the file `name` before an entry names it."""
        path = Path(join(str(self.folder), FILES, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        """Afterwards every entry is on the disk, and the journal takes no more."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


def read(folder: Path, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The entries from byte `start` on, each with the byte after it; it ends before a line that is torn or damaged."""
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
    """The id of the run that the journal in `folder` is about; None where not even the first line is whole."""
    first = next(read(folder), None)
    return first[0].get("run") if first else None


def history(folder: Path) -> dict[str, dict[int, float]]:
    """Every metric of the journal: its values by step; of a step that was done twice the first."""
    metrics: dict[str, dict[int, float]] = {}
    for entry, _ in read(folder):
        if entry.get("kind") == "metrics":
            for name, value in entry["values"].items():
                metrics.setdefault(name, {}).setdefault(entry["step"], value)
    return metrics
