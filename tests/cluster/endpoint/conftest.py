"""One private Ray for all of these tests, and one endpoint on it whose model can be promoted."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import Serving
from cluster.runtime.ray_connection import CALLBACK, INTAKE, private_ray
from cluster.serving.deploy import deploy, undeploy, wait_until_ready
from tests.cluster.endpoint.stage import NAME, START_SECONDS, TRACKING, Stage, register_all


@pytest.fixture(scope="package")
def machine() -> Iterator[Path]:
    """Ray with two CPUs; the folder is its own."""
    environment = pytest.MonkeyPatch()
    environment.setenv(CALLBACK, INTAKE)
    with private_ray(cpus=2, object_store_bytes=100 * 2**20) as folder:
        yield folder
    environment.undo()


@pytest.fixture(scope="package")
def settings(machine) -> Iterator[Serving]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = Serving(
        port=port,
        min_replicas=2,
        max_replicas=2,
        cpus_per_replica=0.5,
        slots=4,
        waiting=8,
        cache=str(machine / "cache"),
        patience_seconds=60.0,  # the machine may be slow, and a long text beside a long one waits
        drain_seconds=5.0,
    )
    yield serving
    undeploy(serving)


@pytest.fixture(scope="package")
def stage(machine, settings) -> Stage:
    """The endpoint, with the version `first`."""
    versions = register_all(machine)
    url = deploy(settings, TRACKING, str(machine), NAME)
    wait_until_ready(url, START_SECONDS)
    return Stage(machine, settings, url, versions)
