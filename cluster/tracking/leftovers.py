"""Leftovers of runs: what MLflow missed while it did not answer, and runs whose command was killed."""

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cluster.config import Tracking
from cluster.tracking.availability import availability
from cluster.tracking.journal import ENTRIES, TAIL_BYTES, Journal, complete_bytes, is_open, lines, record_of
from cluster.tracking.locations import tracking_uri
from cluster.tracking.parameters import parameters
from cluster.tracking.run_record import RunRecord, Status
from cluster.tracking.upload import ship
from edlm.config import ConfigurationError

INTERVAL_SECONDS = 20.0
END_SECONDS = 30.0
log = logging.getLogger(__name__)


class LeftoverShipping(threading.Thread):
    """Background thread that sends the journals below `folder` while a command runs, and a last time at its end.

    An error, and a server that does not answer, cause a warning: the journals are kept for the next command.
    """

    def __init__(self, tracking: Tracking, root: str, folder: Path) -> None:
        super().__init__(name="leftovers", daemon=True)
        self._tracking, self._root, self._folder = tracking, root, folder
        self._server = availability(tracking_uri(tracking, root), tracking.request_timeout_seconds)
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            self._attempt()
            self._stopping.wait(INTERVAL_SECONDS)
        self._attempt()

    def stop(self) -> None:
        """End after a last attempt, for which no more than half a minute is waited."""
        self._stopping.set()
        self.join(END_SECONDS)

    def _attempt(self) -> None:
        try:
            with suppress(ConfigurationError):  # an outage, which was said
                ship(self._tracking, self._root, self._folder)
        except Exception as error:
            self._server.unexpected(error, "the journals in %s cannot be sent; the next command tries", self._folder)


def end_abandoned(folder: Path) -> None:
    """End the runs below `folder` whose journals no living process writes and that have no end, as killed."""
    for path in sorted(folder.rglob(ENTRIES)):
        record = record_of(path.parent)
        if record is None or is_open(path.parent):
            continue
        if last_status(path.parent) in (None, "RUNNING"):
            end(path.parent, record, "KILLED")


def end(folder: Path, record: RunRecord, status: Status, tags: Mapping[str, str] | None = None) -> None:
    """Record in the journal in `folder`, which no process writes, how its run ended; MLflow learns of it later."""
    journal = Journal(folder, record)
    if tags:
        journal.append("tags", values=parameters(tags))
    journal.append("status", value=status)
    journal.close()


def last_status(folder: Path) -> str | None:
    """Return the last status in the journal in `folder`; None if there is none, or no journal."""
    size = complete_bytes(folder)
    for start in (max(0, size - TAIL_BYTES), 0):  # it is near the end, as a rule
        statuses = [
            entry["value"]
            for entry, _ in (lines(folder, start, containing=b'"kind": "status"') if size else ())
            if entry and entry["kind"] == "status"
        ]
        if statuses:
            return statuses[-1]
    return None
