"""Deployment: the registered model behind an HTTP endpoint on Ray Serve, with replicas scaled by load.

Everything is deployed as a Serve config, as `serve deploy` does: if only the `user_config` of the deployment differs,
running replicas are reconfigured in place; any other difference starts new ones.
"""

import contextlib
import logging
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    LoggingConfig,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from cluster.config import Serving, Tracking, is_loopback, require_asked
from cluster.model_sources import require_source
from cluster.runtime.ray_connection import require_resources
from cluster.serving.replica import Replica, listening_host
from cluster.tracking.model_version import ModelVersion
from edlm.config import ConfigurationError, config, parse, plain
from edlm.storage import committed

APPLICATION = "edlm"
BUILDER = "cluster.serving.deploy:application"
BUSY = 0.7  # share of the slots: target requests per replica, as long as replicas report no backlog
SPARE_REQUESTS = 32  # admitted beyond the queue's limit, so that the replica rejects them in OpenAI's format, not Serve
SPARE_SECONDS = 10.0  # likewise, for requests that exceed their timeout
LOOK_BACK_SECONDS = 11.0  # window of the autoscaler's means: Serve's 30 s would miss a burst; metrics come every 10 s
HEALTH_SECONDS = 1.0  # between health checks of a replica; three failures replace it
# Ray's own access log is off: the endpoint writes one line per request itself (`cluster.http.middleware.access_log`).
LOGGING = LoggingConfig(encoding="JSON", enable_access_log=False)
START_ATTEMPTS = 2  # one failure may be due to the storage; two are due to the model
POLL_SECONDS = 0.2
STATUS_SECONDS = 2.0  # between questions to Serve's controller, each of which takes as much as a start can spare
log = logging.getLogger(__name__)


@config
class Arguments:
    """Arguments of `application`, below `args` in a Serve config."""

    model: str
    """Name of the registered model."""
    storage: str | None = None
    """Storage root with the registry's SQLite file, if there is no tracking server. None: the cluster's EDLM_HOME."""
    pinned: bool = False
    """The deployment's `user_config` gives the version. Otherwise the alias is resolved when this config is first
    deployed, and the version then stays fixed."""
    serving: Serving = Serving()
    """Endpoint, as the section `serving` of an experiment."""
    tracking: Tracking = Tracking()
    """Model registry, as the section `tracking` of an experiment."""
    logs: str | None = None
    """Folder on each machine for the log of each replica. None: standard error only, which Ray keeps in the folder of
    its session."""


def application(args: dict[str, Any]) -> serve.Application:
    """Build the application of a Serve config (`import_path: cluster.serving.deploy:application`).

    Raises ConfigurationError if the arguments are invalid or name no valid model.
    """
    arguments = parse(Arguments, args, source="args")
    deployment = _deployment(arguments.serving)
    if not arguments.pinned:
        deployment = deployment.options(user_config=asdict(registered(arguments)))
    return deployment.bind(arguments.serving, arguments.logs)


def deploy(serving: Serving, tracking: Tracking, storage_root: str, model_name: str) -> str:
    """Deploy the version that the alias refers to now and return the URL at which it will answer.

    The replicas write their logs to `logs_folder(storage_root)`. Ray must be initialized. Raises ConfigurationError if
    the alias refers to nothing, the folder is not the registered one, the port is in use, the cluster is too small, or
    remote clients could send requests without a key.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    arguments = Arguments(
        model=model_name,
        storage=storage_root,
        pinned=True,
        serving=serving,
        tracking=tracking,
        logs=logs_folder(storage_root),
    )
    version = registered(arguments)
    needed = {"CPU": serving.cpus_per_replica, "GPU": serving.gpus_per_replica}
    require_resources("serving", {name: amount for name, amount in needed.items() if amount}, timeout_seconds=0)
    if not is_loopback(serving.host) and serving.key_file is None:
        log.warning("%s is not a loopback address, and the endpoint requires no API key", serving.host)
    _start(serving)
    apply(
        ServeApplicationSchema(
            name=APPLICATION,
            route_prefix="/",
            import_path=BUILDER,
            args=plain(arguments),
            logging_config=LOGGING,
            deployments=[{"name": APPLICATION, "user_config": asdict(version)}],  # type: ignore[list-item]
        )
    )
    return url(serving)


def logs_folder(storage_root: str) -> str | None:
    """Return the folder of the replicas' logs, which stay when Ray is stopped; None: the storage is no local folder."""
    return None if "://" in storage_root else str(Path(storage_root).absolute() / "logs")


def apply(application: ServeApplicationSchema) -> None:
    """Deploy this application; the other applications of the cluster stay unchanged."""
    client = _get_global_client()  # Serve's own commands use the dashboard, which a private Ray does not have
    assert client is not None
    others = [other for name, other in deployed().items() if name != application.name]
    capacity = client.get_serve_details().get("target_capacity")
    client.deploy_apps(ServeDeploySchema(applications=[*others, application], target_capacity=capacity))


def deployed() -> dict[str, ServeApplicationSchema]:
    """Return the applications that were deployed as configs, by name."""
    client = _get_global_client()
    assert client is not None
    details = client.get_serve_details()["applications"]
    configs = {name: app["deployed_app_config"] for name, app in details.items() if app.get("deployed_app_config")}
    return {name: ServeApplicationSchema.model_validate(app) for name, app in configs.items()}


def wait_until_ready(url: str, timeout_seconds: float) -> None:
    """Wait until the endpoint answers at `url`; raise ConfigurationError if it cannot start, or not in time."""
    deadline, asked = time.monotonic() + timeout_seconds, -STATUS_SECONDS
    while True:
        if not _answers(url) and time.monotonic() < asked + STATUS_SECONDS:
            time.sleep(POLL_SECONDS)
            continue
        asked = time.monotonic()
        application = serve.status().applications.get(APPLICATION)
        if application is None:
            raise ConfigurationError(f"nothing is deployed at {url}; deploy the model first")
        if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise ConfigurationError(f"the endpoint at {url} does not start: {reasons(application)}")
        if application.status == ApplicationStatus.RUNNING and _answers(url):
            return
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the endpoint at {url} is not ready after {timeout_seconds:g} s: {reasons(application)}"
            )
        time.sleep(POLL_SECONDS)


def undeploy(serving: Serving) -> None:
    """Remove the application as `remove` does, then stop Serve, which frees the port."""
    remove(serving)
    serve.shutdown()


def remove(serving: Serving) -> None:
    """Remove the application from Serve.

    New requests are rejected; accepted ones have `serving.drain_seconds` to finish, and then end with an error that
    says so.
    """
    if APPLICATION in serve.status().applications:
        seconds = serving.request_timeout_seconds if serving.drain_seconds is None else serving.drain_seconds
        with contextlib.suppress(DeploymentUnavailableError):  # no replica is running
            responses = serve.get_app_handle(APPLICATION).broadcast("drain", seconds)
            await_drained(responses, seconds + SPARE_SECONDS)
        try:
            serve.delete(APPLICATION)  # waits for responses that are still being sent
        except TimeoutError as error:
            log.warning("Serve did not stop its replicas and is shut down regardless: %s", error)


def await_drained(responses: Any, timeout_seconds: float) -> None:
    """Wait for every replica's response to `drain`; log failures and the timeout, after which shutdown goes on."""
    try:
        for result in responses.results(timeout_s=timeout_seconds, return_exceptions=True):
            if isinstance(result, Exception):
                log.warning("a replica did not finish its work: %s", result)
    except TimeoutError:
        log.warning("replicas did not finish their work within %g s; they are stopped", timeout_seconds)


def url(serving: Serving) -> str:
    """Return the URL of the endpoint, as seen from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serving.host, serving.host)
    return f"http://[{host}]:{serving.port}" if ":" in host else f"http://{host}:{serving.port}"


def reasons(application: ApplicationStatusOverview) -> str:
    """Return Serve's messages about the replicas, which say more than its message about the application."""
    messages = [deployment.message for deployment in application.deployments.values()]
    return " ".join(message for message in messages if message) or application.message or application.status


def registered(arguments: Arguments) -> ModelVersion:
    """Return the version that the alias refers to; raise ConfigurationError if none, or if its folder has changed."""
    root = arguments.storage or os.environ.get("EDLM_HOME")
    if root is None:
        raise ConfigurationError("args.storage: missing, and EDLM_HOME was not set where Ray was started; give one")
    from cluster.tracking.runs import open_registry  # takes seconds, saved on Serve's workers that need no registry

    version = open_registry(arguments.tracking, root).resolve(arguments.model, arguments.serving.alias)
    require_source(version.uri, arguments.serving.sources)
    marker = committed(version.uri)
    if marker is None or marker.digest != version.digest:
        content = "no committed output" if marker is None else f"digest {marker.digest}"
        raise ConfigurationError(
            f"model {arguments.model!r} version {version.version} was registered with digest {version.digest}, "
            f"and {version.uri} holds {content}; register it again"
        )
    return version


def _start(serving: Serving) -> None:
    """Start Serve at the configured address, or check that a running Serve listens there."""
    if serve.status().proxies:
        _require_listening(url(serving))
        require_asked(serving, listening_host())
        return
    require_free(serving.host, serving.port)
    timeout = serving.request_timeout_seconds + SPARE_SECONDS
    options = HTTPOptions(host=serving.host, port=serving.port, request_timeout_s=timeout)
    serve.start(http_options=options, logging_config=LOGGING)


def _deployment(serving: Serving) -> serve.Deployment:
    requests = BUSY * serving.slots
    policy = AutoscalingPolicy(
        policy_function="cluster.serving.autoscaling:ByBacklog",
        policy_kwargs={
            "target_backlog_seconds": serving.target_backlog_seconds,
            "target_ongoing_requests": requests,
        },
    )
    return serve.deployment(
        name=APPLICATION,
        ray_actor_options={"num_cpus": serving.cpus_per_replica, "num_gpus": serving.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=serving.min_replicas,
            max_replicas=serving.max_replicas,
            target_ongoing_requests=requests,
            look_back_period_s=LOOK_BACK_SECONDS,
            upscale_delay_s=serving.upscale_delay_seconds,
            downscale_delay_s=serving.downscale_delay_seconds,
            downscale_to_zero_delay_s=serving.downscale_to_zero_delay_seconds,
            policy=policy,
        ),
        max_ongoing_requests=serving.slots + serving.waiting + SPARE_REQUESTS,
        max_queued_requests=serving.max_queued_requests,
        # By then the requests that wait now have run; `cluster.serving.proxy` spreads rejected clients over this time.
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=serving.patience_seconds),
        max_constructor_retry_count=START_ATTEMPTS,
        health_check_period_s=HEALTH_SECONDS,
        # Every request ends by its deadline; Serve lets a stopping replica run until then.
        graceful_shutdown_timeout_s=serving.request_timeout_seconds + SPARE_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
    )(Replica)


def require_free(host: str, port: int) -> None:
    """Raise ConfigurationError unless a server can bind to `host` and `port`."""
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


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
