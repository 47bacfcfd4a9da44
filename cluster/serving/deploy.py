"""Serving: the registered model behind an HTTP endpoint on Ray Serve, in as many replicas as its load asks for.

Everything is deployed as a Serve config, as `serve deploy` does it: where only the `user_config` of the deployment
differs, running replicas are told of it in place; anything else starts new ones.
"""

import contextlib
import logging
import os
import socket
import time
from dataclasses import asdict
from typing import Any

import httpx
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from cluster.config import Serving, Tracking, is_loopback, require_asked
from cluster.runtime.session import require_resources
from cluster.serving.replica import Replica, listening_host
from cluster.tracking.registry import ModelVersion
from cluster.tracking.runs import open_registry
from edlm.config import ConfigurationError, config, parse, plain
from edlm.storage import committed

APPLICATION = "edlm"
BUILDER = "cluster.serving.deploy:application"
BUSY = 0.7  # of its slots: a replica with more requests is not enough, where it does not say how long they will take
SPARE_REQUESTS = 32  # let through beyond the queue's limit, so that the replica refuses in OpenAI's form, not Serve
SPARE_SECONDS = 10.0  # the same, for requests that take too long
LOOK_BACK_SECONDS = 11.0  # of the autoscaler's means: Serve's own 30 s would miss a burst; a number comes every 10 s
HEALTH_SECONDS = 1.0  # between two checks of a replica; three that fail replace it
START_ATTEMPTS = 2  # failed once, it may be the storage's fault; twice, it is the model's
POLL_SECONDS = 0.2
log = logging.getLogger(__name__)


@config
class Arguments:
    """What a Serve config says to `application`, below `args`."""

    model: str
    """The name of the registered model."""
    storage: str | None = None
    """Where the registry's SQLite file lies, if there is no tracking server. None: the cluster's EDLM_HOME."""
    pinned: bool = False
    """The version stands in the deployment's `user_config`. Else it is what the alias stands for when this config is
    first deployed, and it stays that one."""
    serving: Serving = Serving()
    tracking: Tracking = Tracking()


def application(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config: `import_path: cluster.serving:application`.

    ConfigurationError says what is wrong.
    """
    arguments = parse(Arguments, args, source="args")
    deployment = _deployment(arguments.serving)
    if not arguments.pinned:
        deployment = deployment.options(user_config=asdict(registered(arguments)))
    return deployment.bind(arguments.serving)


def deploy(serving: Serving, tracking: Tracking, storage_root: str, model_name: str) -> str:
    """Afterwards Serve starts the model that the alias stands for now, and the URL is where it will answer.

    Ray must be up. Raises ConfigurationError where the alias stands for nothing, the folder is not the registered one,
    the port is taken, the cluster too small, or strangers could ask without a key.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    arguments = Arguments(model=model_name, storage=storage_root, pinned=True, serving=serving, tracking=tracking)
    version = registered(arguments)
    needed = {"CPU": serving.cpus_per_replica, "GPU": serving.gpus_per_replica}
    require_resources("serving", {name: amount for name, amount in needed.items() if amount}, timeout_seconds=0)
    if not is_loopback(serving.host) and serving.key_file is None:
        log.warning("%s is not a loopback address, and the endpoint asks nobody for a key", serving.host)
    _start(serving)
    apply(
        ServeApplicationSchema(
            name=APPLICATION,
            route_prefix="/",
            import_path=BUILDER,
            args=plain(arguments),
            deployments=[{"name": APPLICATION, "user_config": asdict(version)}],  # type: ignore[list-item]
        )
    )
    return url(serving)


def apply(application: ServeApplicationSchema) -> None:
    """Afterwards Serve makes this application so; the other applications of the cluster stay as they are."""
    client = _get_global_client()  # Serve's own commands ask the dashboard for this, which a private Ray does not have
    assert client is not None
    others = [one for name, one in deployed().items() if name != application.name]
    capacity = client.get_serve_details().get("target_capacity")
    client.deploy_apps(ServeDeploySchema(applications=[*others, application], target_capacity=capacity))


def deployed() -> dict[str, ServeApplicationSchema]:
    """The applications that were deployed as configs, by name."""
    client = _get_global_client()
    assert client is not None
    details = client.get_serve_details()["applications"]
    configs = {name: one["deployed_app_config"] for name, one in details.items() if one.get("deployed_app_config")}
    return {name: ServeApplicationSchema.model_validate(one) for name, one in configs.items()}


def wait_until_ready(url: str, timeout_seconds: float) -> None:
    """Nothing, once the endpoint answers there. ConfigurationError where it cannot start, or not in time."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        application = serve.status().applications.get(APPLICATION)
        if application is None:
            raise ConfigurationError(f"nothing is deployed that could answer at {url}; deploy the model first")
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
    """Afterwards nothing is served, and the port is free.

    Nothing new is taken from now on; what is on its way has `serving.drain_seconds` to end, and is then ended with an
    error that says so.
    """
    if APPLICATION in serve.status().applications:
        seconds = serving.request_timeout_seconds if serving.drain_seconds is None else serving.drain_seconds
        with contextlib.suppress(DeploymentUnavailableError):  # no replica runs
            said = serve.get_app_handle(APPLICATION).broadcast("drain", seconds)
            for one in said.results(timeout_s=seconds + SPARE_SECONDS, return_exceptions=True):
                if isinstance(one, Exception):
                    log.warning("a replica did not end its work in order: %s", one)
        try:
            serve.delete(APPLICATION)  # waits for what is still being sent
        except TimeoutError as error:
            log.warning("Serve has not ended its replicas, and is taken down without: %s", error)
    serve.shutdown()


def url(serving: Serving) -> str:
    """Where the endpoint answers, seen from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serving.host, serving.host)
    return f"http://[{host}]:{serving.port}" if ":" in host else f"http://{host}:{serving.port}"


def reasons(application: ApplicationStatusOverview) -> str:
    """What Serve says about the replicas, which is more than it says about the application."""
    said = [deployment.message for deployment in application.deployments.values()]
    return " ".join(message for message in said if message) or application.message or application.status


def registered(arguments: Arguments) -> ModelVersion:
    """What the alias stands for now. ConfigurationError where that is nothing, or the folder is another one by now."""
    root = arguments.storage or os.environ.get("EDLM_HOME")
    if root is None:
        raise ConfigurationError("args.storage: missing, and EDLM_HOME was not set where Ray was started; give one")
    version = open_registry(arguments.tracking, root).resolve(arguments.model, arguments.serving.alias)
    marker = committed(version.uri)
    if marker is None or marker.digest != version.digest:
        found = "nothing that is committed" if marker is None else f"digest {marker.digest}"
        raise ConfigurationError(
            f"model {arguments.model!r} version {version.version} was registered with digest {version.digest}, "
            f"and {version.uri} holds {found}; register it again"
        )
    return version


def _start(serving: Serving) -> None:
    """Afterwards Serve listens at the configured address."""
    if serve.status().proxies:
        _require_listening(url(serving))
        require_asked(serving, listening_host())
        return
    require_free(serving.host, serving.port)
    patience = serving.request_timeout_seconds + SPARE_SECONDS
    serve.start(http_options=HTTPOptions(host=serving.host, port=serving.port, request_timeout_s=patience))


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
        # In so many seconds what waits now has had its turn; `cluster.serving.proxy` spreads the refused over them.
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=serving.patience_seconds),
        max_constructor_retry_count=START_ATTEMPTS,
        health_check_period_s=HEALTH_SECONDS,
        # Every text ends by its deadline; what Serve stops, it lets finish until then.
        graceful_shutdown_timeout_s=serving.request_timeout_seconds + SPARE_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
    )(Replica)


def require_free(host: str, port: int) -> None:
    """Nothing where a server may listen there; ConfigurationError where it may not."""
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
