"""A Ray cluster and an endpoint of a test's own, and the processes of it, which are the only ones that it may kill."""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from cluster.config import Serving
from cluster.runtime.ray_connection import CALLBACK, INTAKE
from cluster.serving.deploy import deploy, undeploy, wait_until_ready
from tests.cluster.endpoint.spoiled import NAME
from tests.cluster.endpoint.stage import START_SECONDS, TRACKING, Stage, register_all

# A dead proxy is noticed after three checks; with the ten seconds of Ray between them it takes half a minute.
QUICK = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2"}


@contextmanager
def own_stage(serving: Serving, warm: bool = True) -> Iterator[Stage]:
    """An endpoint with the version `first` on a private Ray, which ends with the block."""
    root = Path(tempfile.mkdtemp(prefix="edlm-", dir="/tmp"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = replace(serving, port=port, cache=str(root / "cache"))
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {CALLBACK: INTAKE, **QUICK}.items():
            environment.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _temp_dir=str(root / "ray"),
            log_to_driver=False,
        )
        try:
            versions = register_all(root)
            url = deploy(serving, TRACKING, str(root), NAME)
            if warm:
                wait_until_ready(url, START_SECONDS)
            yield Stage(root, serving, url, versions)
        finally:
            try:
                undeploy(serving)
            finally:
                ray.shutdown()
                shutil.rmtree(root, ignore_errors=True)


def own(name: str) -> list[psutil.Process]:
    """The living processes with this title among the descendants of this test."""
    actual = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
            if process.status() != psutil.STATUS_ZOMBIE and name in "".join(process.cmdline()):
                actual.append(process)
    return actual
