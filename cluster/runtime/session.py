"""A connection to Ray: the job's cluster inside a Ray job, a configured address, or a private Ray of this command."""

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._common.network_utils import parse_address  # type: ignore[attr-defined]
from ray._common.utils import get_ray_address_file
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (
    AuthenticationTokenLoader,  # type: ignore[attr-defined]
    generate_and_save_token,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.services import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RpcError

from cluster.config import Cluster
from cluster.runtime.progress import relaying
from edlm.config import ConfigurationError

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 5.0
QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
OBJECT_STORE_BYTES = 256 * 2**20  # metrics, measurements and small models; weights travel through the storage
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
INTAKE = "cluster.serving.proxy.middlewares"  # limits what comes in, before Ray's proxy buffers it
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's job supervisor sets it for the entrypoint


@contextmanager
def connect(cluster: Cluster) -> Iterator[None]:
    """Ray is up inside; a private one is gone afterwards. Never joins a cluster that nobody named.

    Lines that workers say through `cluster.runtime.progress` are printed meanwhile.
    """
    for name, value in _ray_settings(cluster).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # warns of tokens that are in use
    opened = private_ray(os.cpu_count() or 1) if is_private(cluster) else _joined(named_address(cluster.address))
    with opened, relaying():
        yield


@contextmanager
def private_ray(cpus: int, object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[Path]:
    """A Ray of this process alone; inside, the folder that it lies in. Both are gone afterwards.

    The folder is closed to other users of the machine, and Ray listens on the loopback address only, except for one
    port of each Serve replica, where Ray names no address (it asks for the token).
    """
    # Short: the names of Ray's sockets are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="edlm-ray-", dir="/tmp" if os.path.isdir("/tmp") else None))
    _make_token()
    try:
        with _loopback_as_it_is():
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder / "r"),  # which Ray opens to everybody: so it lies below one that is closed
                **QUIET,
            )
        yield folder
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Inside, this process is connected to the cluster at `address`. ConfigurationError where that cannot be."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    _require_answer(address)
    with _loopback_as_it_is():
        ray.init(address=address, **QUIET)
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Nothing where a Ray cluster lets this process in; ConfigurationError where Ray would try for minutes.

    An address of another form than host:port is left to Ray.
    """
    where = parse_address(address)
    if where is None:
        return
    try:
        socket.create_connection((where[0], int(where[1])), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigurationError(
            f"address: nothing answers at {address} ({error.strerror or error}); give that of a running Ray cluster"
        ) from error
    try:
        GcsClient(address=address)
    except AuthenticationError as error:
        raise ConfigurationError(
            f"address: the Ray cluster at {address} does not take this shell's token; set RAY_AUTH_MODE=token, and "
            "have the token of the user who started it in ~/.ray/auth_token, or in RAY_AUTH_TOKEN"
        ) from error
    except RpcError as error:
        raise ConfigurationError(
            f"address: what listens at {address} does not answer as a Ray cluster ({error}); give the address that "
            "`ray start` or `make serve` printed, which is not the dashboard's or the endpoint's"
        ) from error


def is_private(cluster: Cluster) -> bool:
    """Whether this command runs a Ray of its own."""
    return cluster.address is None and IN_A_JOB not in os.environ


def address() -> str:
    """Where other programs of this machine find the Ray of this command."""
    return ray.get_runtime_context().gcs_address


def named_address(given: str | None) -> str:
    """Of the cluster that somebody named: `given`, else RAY_ADDRESS, else that of this user's `ray start`.

    Raises ConfigurationError where there is none of these: whatever else runs on this machine is not ours to join.
    """
    if given not in (None, "auto"):
        return given
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    begun = Path(get_ray_address_file(None))
    if begun.is_file() and begun.stat().st_uid == os.getuid():
        return begun.read_text().strip()
    raise ConfigurationError(
        "address: missing; RAY_ADDRESS is not set, and `ray start` has begun no cluster of yours on this machine. "
        "Give --address HOST:PORT, which `make serve` prints"
    )


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


@contextmanager
def _loopback_as_it_is() -> Iterator[None]:
    """Inside, `ray.init` takes 127.0.0.1 for an address, and does not put the machine's outward one in its place.

    Ray does so wherever it builds no clusters of machines (macOS and Windows); a private Ray is none either.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _make_token() -> None:
    """Afterwards there is a token, which Ray would make readable for everybody."""
    if AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return
    before = os.umask(0o077)
    try:
        generate_and_save_token()
    finally:
        os.umask(before)


def _ray_settings(cluster: Cluster) -> dict[str, str]:
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of the controller's poll: what ends is noticed sooner
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(cluster.start_timeout_seconds),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(cluster.collective_timeout_seconds),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        CALLBACK: INTAKE,
    }
