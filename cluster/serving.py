"""Serving: the registered model behind an HTTP endpoint on Ray Serve, in as many replicas as its load asks for."""

import logging
import socket
import tempfile
import time
from pathlib import Path

import httpx
import torch
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from cluster.access import log_to_standard_error
from cluster.config import Serving, Tracking, is_loopback
from cluster.endpoint import Endpoint, make_app
from cluster.ray_meters import RayMeters
from cluster.registry import ModelVersion
from cluster.rules import rules_of
from cluster.session import require_resources
from cluster.tracking import open_tracking
from edlm.config import ConfigurationError
from edlm.continuous import ContinuousBatch
from edlm.generator import TextGenerator
from edlm.job import Limits
from edlm.storage import committed

APPLICATION = "edlm"
SPARE_REQUESTS = 32  # let through beyond the queue's limit, so that the replica refuses in OpenAI's form, not Serve
BUSY = 0.7  # of its slots: a replica with more requests is not enough, where it does not say how long they will take
SPARE_SECONDS = 10.0  # the same, for requests that take too long
START_ATTEMPTS = 2  # failed once, it may be the storage's fault; twice, it is the model's
POLL_SECONDS = 0.2
log = logging.getLogger(__name__)


@serve.ingress()
class Replica:
    """One copy of one version of the model; which one is decided before, and never looked up again."""

    def __init__(self, version: ModelVersion, serving: Serving) -> None:
        torch.set_num_threads(max(1, int(serving.cpus_per_replica)))  # more would spin against the other replicas
        device = "cuda" if serving.gpus_per_replica > 0 else "cpu"
        cache = Path(tempfile.gettempdir()) / "edlm-cache"
        generator = TextGenerator.load(version.uri, cache, version.digest, device)
        limits = Limits(slots=serving.slots, waiting=serving.waiting, patience_seconds=serving.patience_seconds)
        batch = ContinuousBatch(generator, version.fingerprint, limits)
        endpoint = Endpoint(batch, rules_of(serving), RayMeters())
        endpoint.warm = True
        log_to_standard_error()
        self._app = make_app(endpoint)

    def __serve_build_asgi_app__(self):
        return self._app


def deploy(serving: Serving, tracking: Tracking, storage_root: str, model_name: str) -> str:
    """Afterwards Serve starts the model that the alias stands for now, and the URL is where it will answer.

    Ray must be up. Raises ValueError where the alias stands for nothing, or the folder is not the registered one;
    ConfigurationError where the port is taken, or the cluster too small.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    version = open_tracking(tracking, storage_root).registry.resolve(model_name, serving.alias)
    marker = committed(version.uri)
    if marker is None or marker.digest != version.digest:
        found = "nothing that is committed" if marker is None else f"digest {marker.digest}"
        raise ValueError(
            f"model {model_name!r} version {version.version} was registered with digest {version.digest}, "
            f"and {version.uri} holds {found}; register it again"
        )
    needed = {"CPU": serving.cpus_per_replica, "GPU": serving.gpus_per_replica}
    require_resources("serving", {name: amount for name, amount in needed.items() if amount}, timeout_seconds=0)
    if not is_loopback(serving.host) and serving.key_file is None:
        log.warning("%s is not a loopback address, and the endpoint asks nobody for a key", serving.host)
    _start(serving)
    application = _deployment(serving).bind(version, serving)
    serve.run_many(
        [serve.RunTarget(application, name=APPLICATION, route_prefix="/")], wait_for_applications_running=False
    )
    return url(serving)


def wait_until_ready(url: str, timeout_seconds: float) -> None:
    """Nothing, once the endpoint answers there. ConfigurationError where it cannot start, or not in time."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        application = serve.status().applications.get(APPLICATION)
        if application is None:
            raise ConfigurationError(f"nothing is deployed that could answer at {url}; deploy the model first")
        if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise ConfigurationError(f"the endpoint at {url} does not start: {_reasons(application)}")
        if application.status == ApplicationStatus.RUNNING and _answers(url):
            return
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the endpoint at {url} is not ready after {timeout_seconds:g} s: {_reasons(application)}"
            )
        time.sleep(POLL_SECONDS)


def undeploy() -> None:
    """Afterwards nothing is served, and the port is free."""
    serve.shutdown()


def url(serving: Serving) -> str:
    """Where the endpoint answers, seen from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serving.host, serving.host)
    return f"http://[{host}]:{serving.port}" if ":" in host else f"http://{host}:{serving.port}"


def _start(serving: Serving) -> None:
    """Afterwards Serve listens at the configured address."""
    if serve.status().proxies:
        _require_listening(url(serving))
        return
    _require_free(serving.host, serving.port)
    patience = serving.request_timeout_seconds + SPARE_SECONDS
    serve.start(http_options=HTTPOptions(host=serving.host, port=serving.port, request_timeout_s=patience))


def _deployment(serving: Serving) -> serve.Deployment:
    return serve.deployment(
        name=APPLICATION,
        ray_actor_options={"num_cpus": serving.cpus_per_replica, "num_gpus": serving.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=serving.min_replicas,
            max_replicas=serving.max_replicas,
            target_ongoing_requests=BUSY * serving.slots,
            upscale_delay_s=serving.upscale_delay_seconds,
            downscale_delay_s=serving.downscale_delay_seconds,
            downscale_to_zero_delay_s=serving.downscale_to_zero_delay_seconds,
        ),
        max_ongoing_requests=serving.slots + serving.waiting + SPARE_REQUESTS,
        max_queued_requests=serving.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        max_constructor_retry_count=START_ATTEMPTS,
    )(Replica)


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"serving.port: {port} on {host} cannot be bound ({error.strerror}); "
                "stop the program that uses it, or give another one with --serving.port"
            ) from error


def _require_listening(url: str) -> None:
    try:
        httpx.get(f"{url}/-/healthz", timeout=5, trust_env=False)
    except httpx.TransportError as error:
        raise ConfigurationError(
            f"serving.port: Serve already runs on this cluster, and not at {url}; give its port, or stop it first"
        ) from error


def _reasons(application: ApplicationStatusOverview) -> str:
    """What Serve says about the replicas, which is more than it says about the application."""
    said = [deployment.message for deployment in application.deployments.values()]
    return " ".join(message for message in said if message) or application.message or application.status


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
