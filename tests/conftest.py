"""What holds for all tests: how many threads they take, and which of them share a process.

One thread for every process that tests start, unless the environment says otherwise, or a test asks for more: several
processes with several threads each slow one another down on a few cores; so do threads that spin as they wait.
"""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

gc.set_threshold(100_000, 20, 20)  # as `cluster` does, and before the first import that is slow

# Here, before torch is imported: it reads them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if "EDLM_CACHE" not in os.environ:  # inherited by all processes that tests start
    os.environ["EDLM_CACHE"] = tempfile.mkdtemp(prefix="edlm-tests-cache-")
    atexit.register(shutil.rmtree, os.environ["EDLM_CACHE"], ignore_errors=True)

# A busy machine takes longer than hypothesis' 200 ms per example, which is no fault of the code.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

# Where the product looks for runs and models; a test that leaves one of them set sends the next one elsewhere.
LOCATIONS = ("EDLM_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")

SHARED = ("tests/cluster/endpoint/", "tests/cluster/http/playground/")


class ByFixtures(LoadFileScheduling):
    """The tests of a file run in one process, in order, and so do all files that share an endpoint.

    Their fixtures are trained models and whole clusters, of which every process would make its own.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in SHARED if nodeid.startswith(folder)), None) or super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFixtures | None:
    """Return the scheduler for `--dist loadfile`; None leaves it to pytest-xdist."""
    return ByFixtures(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that start clusters first: one that takes minutes must not be the last to begin."""
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)


def pytest_collection_finish() -> None:
    """Exempt the imported modules and the collected tests, which live until the end, from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _locations_are_left_as_they_were() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in LOCATIONS}
    yield
    after = {name: os.environ.get(name) for name in LOCATIONS}
    assert after == before, "a test changed the environment of those after it: set variables by monkeypatch"
