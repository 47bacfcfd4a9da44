"""Connection to Ray: the cluster of the enclosing Ray job, a configured address, or a private Ray of this command."""

import contextlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
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

from cluster.config import Cluster, is_private
from cluster.runtime.cluster_watch import watched_gcs
from cluster.runtime.progress import relaying
from edlm.config import ConfigurationError
from edlm.scratch import scratch

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 5.0
EXIT_SECONDS = 5.0  # that workers have to end after Ray has
START_ATTEMPTS = 2  # of a private Ray, whose processes have 30 s, which Ray does not let anyone change
TIMED_OUT = "timed out during startup"
QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
OBJECT_STORE_BYTES = 256 * 2**20  # metrics, measurements and small models; weights go through the storage
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
INTAKE = "cluster.serving.proxy.middlewares"  # limits requests before Ray's proxy buffers them


@contextmanager
def connect(cluster: Cluster) -> Iterator[None]:
    """Connect to Ray while the context is open; a private Ray is removed on exit.

    Never joins a cluster that was not named. Lines that workers send through `cluster.runtime.progress` are printed
    meanwhile.
    """
    for name, value in _ray_settings(cluster).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns about tokens that are in use
    where = None if is_private(cluster) else named_address(cluster.address)
    opened = private_ray(os.cpu_count() or 1) if where is None else _joined(where)
    by_client = where is not None and "://" in where  # which knows no GCS, and notices itself that its server is gone
    with opened, relaying(), nullcontext() if by_client else watched_gcs(address()):
        yield


@contextmanager
def private_ray(cpus: int, object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[Path]:
    """Start a Ray for this process alone and yield its folder; stop it and delete the folder on exit.

    The folders of processes that were killed are deleted first.

    The folder is closed to other users of the machine, and Ray listens on the loopback address only, except for two
    kinds of ports whose address cannot be set: one gRPC port per Serve replica, which requires the token, and, while
    workers train, the port of torch.distributed's TCPStore, which requires no authentication.
    """
    # A short path: the names of Ray's sockets are limited to 107 bytes.
    parent = Path("/tmp") if os.path.isdir("/tmp") else Path(tempfile.gettempdir())
    with scratch(parent, "edlm-ray-") as folder:
        _make_token()
        try:
            _start(folder, cpus, object_store_bytes)
            yield folder
        finally:
            workers = _workers(folder)
            ray.shutdown()
            for worker in psutil.wait_procs(workers, EXIT_SECONDS)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()


def _workers(folder: Path) -> list[psutil.Process]:
    """Return the workers of the Ray in this folder, those included that Ray itself takes for ended.

    A worker may hang in its own exit: seen of Ray 2.60's actors, which wait for a lock that they hold.
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # also raised for one that has ended, such as an earlier raylet
            if child.name() == "raylet" and str(folder) in " ".join(child.cmdline()):
                return child.children(recursive=True)
    return []


def _start(folder: Path, cpus: int, object_store_bytes: int) -> None:
    """Start Ray, a second time where the machine is too busy for the time that Ray gives its processes to start.

    Raise ConfigurationError if the second time is no better.
    """
    failure: Exception | None = None
    for attempt in range(START_ATTEMPTS):
        try:
            with _loopback_as_it_is():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    object_store_memory=object_store_bytes,
                    include_dashboard=False,
                    _node_ip_address=LOOPBACK,
                    _temp_dir=str(folder / f"r{attempt}"),  # Ray opens it to all users, so its parent is closed
                    **QUIET,
                )
            return
        except Exception as error:  # Ray has no class of its own for this
            if TIMED_OUT not in str(error):
                raise
            failure = error  # what was started ends with this process
    raise ConfigurationError(
        f"Ray's processes did not start in time, {START_ATTEMPTS} times: other programs keep the processors busy; wait "
        "until they have ended, and run the command again"
    ) from failure


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Connect to the cluster at `address` while the context is open; raise ConfigurationError if that fails."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    _require_answer(address)
    with _loopback_as_it_is():
        ray.init(address=address, **QUIET)
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise ConfigurationError unless a Ray cluster accepts this process; Ray itself would retry for minutes.

    A URI, as of Ray's client, is left to Ray.
    """
    if "://" in address:
        return
    where = parse_address(address)
    if where is None or not where[1].isdigit():
        raise ConfigurationError(f"address: {address!r} is not HOST:PORT; give the address of a running Ray cluster")
    try:
        socket.create_connection((where[0], int(where[1])), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigurationError(
            f"address: nothing answers at {address} ({error.strerror or error}); give the address of a running Ray "
            "cluster"
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


def address() -> str:
    """Return the address at which other programs of this machine find the Ray of this command."""
    return ray.get_runtime_context().gcs_address


def named_address(given: str | None) -> str:
    """Return `given` (if not "auto"), else RAY_ADDRESS, else the address of this user's `ray start`.

    Raises ConfigurationError if there is none of these: any other cluster on this machine must not be joined.
    """
    if given not in (None, "auto"):
        return given
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    address_file = Path(get_ray_address_file(None))
    if address_file.is_file() and address_file.stat().st_uid == os.getuid():
        return address_file.read_text().strip()
    raise ConfigurationError(
        "address: missing; RAY_ADDRESS is not set, and `ray start` has begun no cluster of yours on this machine. "
        "Give --address HOST:PORT, which `make serve` prints"
    )


def require_resources(what: str, needed: dict[str, float], timeout_seconds: float) -> None:
    """Wait until the cluster has these resources in total.

    Raises ConfigurationError naming the missing ones after the timeout, which is 0 for a cluster that cannot grow.
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
    """Make `ray.init` keep 127.0.0.1 as an address instead of replacing it by the machine's external one.

    Ray keeps it on platforms without multi-node clusters (macOS and Windows); a private Ray has one node, too.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _make_token() -> None:
    """Create Ray's token if there is none, under a umask: Ray would make it readable to all users."""
    if AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return
    before = os.umask(0o077)
    try:
        generate_and_save_token()
    finally:
        os.umask(before)


def _ray_settings(cluster: Cluster) -> dict[str, str]:
    # The machine of this command gives no notice; a watcher is a process more for every training.
    alone = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if is_private(cluster) else {}
    return {
        **alone,
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's poll: ended workers are noticed sooner
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(cluster.start_timeout_seconds),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(cluster.collective_timeout_seconds),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        CALLBACK: INTAKE,
    }
