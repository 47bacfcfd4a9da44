"""A connection to Ray: the job's cluster inside a Ray job, a configured address, or a private Ray of this command."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.config import Cluster
from cluster.progress import relaying
from edlm.config import ConfigurationError

OBJECT_STORE_BYTES = 256 * 2**20  # metrics, measurements and small models; weights travel through the storage
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
INTAKE = "cluster.proxy.middlewares"  # limits what comes in, before Ray's proxy buffers it
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's job supervisor sets it for the entrypoint


@contextmanager
def connect(cluster: Cluster) -> Iterator[None]:
    """Ray is up inside; a private one is gone afterwards. Never joins a cluster that nobody named.

    Lines that workers say through `cluster.progress` are printed meanwhile.
    """
    for name, value in _ray_settings(cluster).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    private = None
    if is_private(cluster):
        # Short: the names of Ray's sockets are limited to 107 bytes.
        private = tempfile.mkdtemp(prefix="edlm-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _temp_dir=private,
            **quiet,
        )
    else:
        ray.init(address=cluster.address or os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    try:
        with relaying():
            yield
    finally:
        ray.shutdown()
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)


def is_private(cluster: Cluster) -> bool:
    """Whether this command runs a Ray of its own."""
    return cluster.address is None and IN_A_JOB not in os.environ


def address() -> str:
    """Where other programs of this machine find the Ray of this command."""
    return ray.get_runtime_context().gcs_address


def require_resources(what: str, needed: dict[str, float], timeout_seconds: float) -> None:
    """Nothing, once the cluster has these resources in all.

    Raises ConfigurationError naming what is missing: after the timeout on a cluster that may grow, at once on one that
    cannot.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        total = ray.cluster_resources()
        missing = {name: amount for name, amount in needed.items() if total.get(name, 0) < amount}
        if not missing:
            return
        if time.monotonic() >= deadline:
            wants = ", ".join(f"{amount:g} {name}" for name, amount in missing.items())
            has = ", ".join(f"{total.get(name, 0):g} {name}" for name in missing)
            raise ConfigurationError(
                f"{what}: {wants} needed, the cluster has {has}; "
                "ask for fewer workers, or less for each, in the cluster section, or add nodes"
            )
        time.sleep(0.5)


def _ray_settings(cluster: Cluster) -> dict[str, str]:
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of the controller's poll: what ends is noticed sooner
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(cluster.start_timeout_seconds),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(cluster.collective_timeout_seconds),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        CALLBACK: INTAKE,
    }
