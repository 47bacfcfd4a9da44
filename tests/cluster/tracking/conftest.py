"""A storage root with its SQLite database for the tests of a file, and runs of its own for each test."""

import pytest

from cluster.config import Tracking
from cluster.tracking import availability
from cluster.tracking.runs import Runs, open_tracking
from tests.tracking_database import copy_database


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """A storage root with its SQLite database."""
    root = tmp_path_factory.mktemp("root")
    copy_database(root)
    return str(root)


@pytest.fixture
def runs(root, request) -> Runs:
    return open_tracking(Tracking(experiment=request.node.name), root)


@pytest.fixture(autouse=True)
def _nothing_was_said_before(monkeypatch) -> None:
    """A process says of a server what it has not said lately; every test is a process of its own in this."""
    monkeypatch.setattr(availability, "_known", {})
