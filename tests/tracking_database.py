"""Tracking databases for tests that need one each: MLflow takes seconds to create one, and a copy takes none."""

import functools
import tempfile
from pathlib import Path

from cluster.config import Tracking
from cluster.tracking.locations import database_file
from cluster.tracking.runs import Runs, open_tracking


@functools.cache
def _database() -> bytes:
    with tempfile.TemporaryDirectory() as root:
        open_tracking(Tracking(experiment="template"), root)
        file = database_file(Tracking(), root)
        assert file is not None
        return file.read_bytes()


def copy_database(root: Path) -> None:
    """Give a storage root that has no database a copy of one that MLflow created."""
    file = database_file(Tracking(), str(root))
    assert file is not None
    assert not file.exists()
    root.mkdir(exist_ok=True)
    file.write_bytes(_database())


def open_copied_tracking(root: Path, experiment: str = "edlm") -> Runs:
    """Open the tracking of a storage root that has none yet; its database is a copy of one that MLflow created."""
    copy_database(root)
    return open_tracking(Tracking(experiment=experiment), str(root))
