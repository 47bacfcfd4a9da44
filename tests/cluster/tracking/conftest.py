"""A storage root with its SQLite database for the tests of a file, and runs of its own for each test."""

import pytest

from cluster.config import Tracking
from cluster.tracking.runs import Runs, open_tracking


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """A storage root with its SQLite database."""
    return str(tmp_path_factory.mktemp("root"))


@pytest.fixture
def runs(root, request) -> Runs:
    return open_tracking(Tracking(experiment=request.node.name), root)
