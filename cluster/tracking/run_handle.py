"""Handle of a run: plain data that can be sent to any worker."""

from dataclasses import dataclass

from cluster.config import Tracking
from cluster.tracking.journal_folder import copy_uri, journal_folder
from cluster.tracking.run_record import RunRecord
from cluster.tracking.run_tracker import RunTracker


@dataclass(frozen=True)
class RunHandle:
    """Run of a stage, whose journal is in a folder of the machine that calls the handle."""

    tracking: Tracking
    root: str
    record: RunRecord
    outputs: str
    """URI of the outputs of all stages."""
    stage_folder: str

    def __call__(self, copied: bool = False) -> RunTracker:
        """Return the tracker of this run; only one process at a time may have one.

        `copied`: with the metrics that other machines have, and for `RunTracker.secure`, if the storage is no disk that
        all of them share.
        """
        copy = copy_uri(self.outputs, self.stage_folder) if copied else None
        return RunTracker(self.tracking, self.root, self.record, journal_folder(self.outputs, self.stage_folder), copy)
