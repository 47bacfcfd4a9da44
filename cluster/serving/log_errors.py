"""Errors in the log files of replicas, as lines for the terminal of the command that serves."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = "replica-*.log"  # of `cluster.serving.replica`
SHOWN_LEVELS = ("ERROR", "CRITICAL")


class LogErrors:
    """Reader of the log files in a folder, from where they end now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets = {path: path.stat().st_size for path in self._paths()}

    def new(self) -> list[str]:
        """Return one line per error that was logged since the last call."""
        return [line for path in self._paths() for line in self._errors(path)]

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(FILES))

    def _errors(self, path: Path) -> Iterator[str]:
        try:
            file = path.open("rb")
        except FileNotFoundError:  # it is being rotated
            return
        with file:
            start = self._offsets.get(path, 0)
            if os.fstat(file.fileno()).st_size < start:  # rotated: a new file has its name
                start = 0
            file.seek(start)
            whole = file.read().rpartition(b"\n")[0]
        self._offsets[path] = start + (len(whole) + 1 if whole else 0)
        for line in whole.splitlines():
            if (error := _described(json.loads(line))) is not None:
                yield f"{error}; see {path}"


def _described(entry: dict[str, Any]) -> str | None:
    """Return an error in words; None for any other entry."""
    if entry.get("event") == "failure":
        return f"request {entry['request_id']} failed: {entry['error']} in {entry['at'][-1]}"
    if entry.get("level") in SHOWN_LEVELS:
        return entry["message"].splitlines()[0]
    return None
