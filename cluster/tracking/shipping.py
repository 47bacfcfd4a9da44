"""Shipping of a journal while it is written: background threads, so that no training waits for MLflow."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import Tracking
from cluster.tracking.availability import availability
from cluster.tracking.locations import tracking_uri
from cluster.tracking.run_record import RunRecord

if TYPE_CHECKING:
    from cluster.tracking.upload import JournalUpload

INTERVAL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class Shipping:
    """Two threads that ship the journal in `folder` until they are stopped: its records, and beside them its files.

    They import MLflow, which takes seconds.
    """

    def __init__(self, tracking: Tracking, root: str, folder: Path, record: RunRecord) -> None:
        self._made_of = (tracking, root, folder, record)
        self._folder = folder
        self._server = availability(tracking_uri(tracking, root), tracking.request_timeout_seconds)
        self._stopping, self._lock = threading.Event(), threading.Lock()
        self._upload: JournalUpload | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(ship,), name=f"shipping-{folder.name}", daemon=True)
            for ship in (lambda: self._journal().ship_records(), lambda: self._journal().ship_files())
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, patience_seconds: float) -> None:
        """Ship a last time, and wait for that at most so long."""
        self._stopping.set()
        deadline = time.monotonic() + patience_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, ship: Callable[[], None]) -> None:
        from cluster.tracking.upload import attempt

        pause = INTERVAL_SECONDS
        while not self._stopping.wait(pause):
            shipped = attempt(ship, self._folder, self._server)
            pause = INTERVAL_SECONDS if shipped else min(2 * pause, LONGEST_PAUSE_SECONDS)
        attempt(ship, self._folder, self._server)

    def _journal(self) -> "JournalUpload":
        """Return the upload that both threads share."""
        from cluster.tracking.upload import JournalUpload

        with self._lock:
            if self._upload is None:
                self._upload = JournalUpload(*self._made_of)
            return self._upload
