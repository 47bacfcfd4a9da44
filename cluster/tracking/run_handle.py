"""A run that somebody may tell about: plain data that travels to any worker, and imports MLflow only when called."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import Tracking

if TYPE_CHECKING:
    from cluster.tracking.runs import RunTracker


@dataclass(frozen=True)
class RunHandle:
    """One MLflow run, and the local folder that keeps its journal."""

    tracking: Tracking
    root: str
    run_id: str
    journal: Path

    def __call__(self) -> "RunTracker":
        """The tracker of this run; only one process at a time may have one."""
        from cluster.tracking.runs import RunTracker  # takes seconds, which the workers that say nothing are spared

        return RunTracker(self.tracking, self.root, self.run_id, self.journal)
