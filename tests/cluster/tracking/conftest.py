"""A storage root with its SQLite database for the tests of a file, and runs of its own for each test."""

import shutil
from pathlib import Path

import pytest

from cluster.config import Tracking
from cluster.tracking.database import create_database
from cluster.tracking.runs import Runs, open_tracking


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    """A database with MLflow's tables, to be copied: making one takes seconds."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    create_database(file, str(file.parent / "artifacts"))
    return file


@pytest.fixture(scope="module")
def root(empty_database, tmp_path_factory) -> str:
    """A storage root with its SQLite database."""
    root = tmp_path_factory.mktemp("root")
    shutil.copy(empty_database, root)
    return str(root)


@pytest.fixture
def runs(root, request) -> Runs:
    return open_tracking(Tracking(experiment=request.node.name), root)
