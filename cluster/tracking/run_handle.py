"""Handle of a run: plain data that can be sent to any worker, and imports MLflow only when called."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import Tracking

if TYPE_CHECKING:
    from cluster.tracking.runs import RunTracker


@dataclass(frozen=True)
class RunHandle:
    """MLflow run, and the local folder of its journal."""

    tracking: Tracking
    root: str
    run_id: str
    journal: Path

    def __call__(self) -> "RunTracker":
        """Return the tracker of this run; only one process at a time may have one."""
        from cluster.tracking.runs import RunTracker  # takes seconds, saved on workers that log nothing

        return RunTracker(self.tracking, self.root, self.run_id, self.journal)
