"""A replica: one copy of one version of the model on Ray Serve, which another version may follow while it answers."""

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from ray import serve
from ray.serve.context import _get_global_client

from cluster.config import Serving, is_loopback, require_asked
from cluster.http.endpoint import HUNG_SECONDS, Endpoint, make_app
from cluster.http.limits.limits import rules_of
from cluster.http.metrics import instruments as meters
from cluster.http.middleware.access_log import log_to_standard_error
from cluster.http.warmup import COMPILED_ROWS, ONE_ROW, Unsound, warmed, warming
from cluster.runtime.session import CALLBACK, INTAKE
from cluster.serving.autoscaling import BACKLOG
from cluster.serving.deferred_app import DeferredApp
from cluster.serving.model_cache import cache_folder, cached_model
from cluster.serving.model_swap import ModelSwap
from cluster.serving.ray_metrics import RayMeters
from cluster.tracking.registry import ModelVersion
from edlm.config import ConfigurationError, config, parse
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import EngineFailed, Full, Limits
from edlm.models.execution import Execution
from edlm.storage import Sha256

LOCAL = "127.0.0.1"
PASSES = 8.0  # about, that warming takes
COMPILING_SECONDS = 60.0  # in which an engine gives no sign of life: of a shape that warming has not met
WARMING_SECONDS = 120.0  # that a new model has to fill its first canvases, beside the texts of the old one
log = logging.getLogger(__name__)


@config
class Wanted:
    """Which model a replica is to answer with: what Serve calls the `user_config`, never an alias."""

    version: str
    uri: str
    digest: Sha256

    @property
    def known(self) -> ModelVersion:
        return ModelVersion(version=self.version, uri=self.uri, digest=self.digest)


@serve.ingress()
class Replica:
    """Loads what it is told to, answers, and says how it stands; it never looks up which model that should be."""

    def __init__(self, serving: Serving) -> None:
        self._endpoint: Endpoint | None = None
        torch.set_num_threads(max(1, int(serving.cpus_per_replica)))  # more would spin against the other replicas
        log_to_standard_error()
        self._serving = serving
        self._device = "cuda" if serving.gpus_per_replica > 0 else "cpu"
        self._execution = Execution(precision=serving.precision, compiled=serving.compiled)
        self._rows = COMPILED_ROWS if serving.compiled else ONE_ROW
        self._app, self._meters = DeferredApp(), RayMeters()
        self._succession: ModelSwap[TextGenerator] | None = None
        self._drained = False

    def __serve_build_asgi_app__(self) -> DeferredApp:
        return self._app

    async def reconfigure(self, user_config: Any) -> None:
        """The first time, afterwards the model answers, or the replica does not start: the error says why.

        Later, afterwards the model is on its way and the old one answers meanwhile. Never raises then: a replica whose
        reconfiguration fails is killed, however well it answers.
        """
        if self._succession is None:
            first = wanted_version(user_config)
            require_guard(self._serving, await asyncio.to_thread(listening_host))
            generator = await asyncio.to_thread(self._first, first)
            self._endpoint = Endpoint(self._engine(generator, first), rules_of(self._serving), self._meters)
            self._app.app = make_app(self._endpoint)
            self._succession = ModelSwap(first, self._load, self._swap, self._ended)
            self._endpoint.warm = True
            return
        try:
            self._succession.ask(wanted_version(user_config))
        except ConfigurationError as error:
            self._succession.refuse(str(error))

    async def check_health(self) -> None:
        """Raises where the engine can do nothing any more; Serve then starts another replica in this one's place."""
        if self._endpoint is None or self._drained:
            return
        self._endpoint.readings.take()
        require_living(self._endpoint.batch, COMPILING_SECONDS if self._execution.compiled else HUNG_SECONDS)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `cluster.serving.autoscaling` goes by."""
        return {BACKLOG: 0.0 if self._endpoint is None else self._endpoint.batch.backlog_seconds}

    async def standing(self) -> dict[str, Any]:
        """How things stand, for whoever deploys: the models, the process, and what the engine has counted."""
        assert self._succession is not None
        assert self._endpoint is not None
        counts = dataclasses.asdict(self._endpoint.batch.statistics())
        return {**dataclasses.asdict(self._succession.standing), "pid": os.getpid(), "counts": counts}

    async def drain(self, seconds: float) -> bool:
        """Afterwards nothing new was begun, and what was on its way has ended, or has failed after `seconds`.

        Whether everything came to its own end.
        """
        assert self._endpoint is not None
        self._drained = True
        return await asyncio.to_thread(self._endpoint.batch.drain, seconds)

    def __del__(self) -> None:
        if self._endpoint is not None:
            self._endpoint.batch.close()

    def _first(self, version: ModelVersion) -> TextGenerator:
        generator = self._open(version, self._device)
        warmed(generator, self._rows)
        return generator

    def _open(self, version: ModelVersion, device: str) -> TextGenerator:
        folder = cached_model(version, cache_folder(self._serving.cache))
        return open_bundle(folder, device, self._execution)

    def _engine(self, generator: TextGenerator, version: ModelVersion) -> InferenceEngine:
        return InferenceEngine(generator, version.fingerprint, limits_of(self._serving))

    def _load(self, version: ModelVersion) -> TextGenerator:
        """Opened on the processor, in this thread; the engine's thread, which alone touches the device, does the rest.

        Raises whatever is wrong with the model.
        """
        assert self._endpoint is not None
        generator = self._open(version, "cpu")
        if self._execution.compiled and self._device == "cpu":
            warmed(generator, self._rows)  # what is compiled here stops no text of the old model
        batch, deadline = self._endpoint.batch, time.monotonic() + WARMING_SECONDS
        while True:
            try:
                ticket = batch.run(PASSES, warming(generator, self._device, self._rows), "warming", deadline)
                break
            except Full as full:  # the texts of the old model come first
                if time.monotonic() > deadline:
                    raise
                time.sleep(min(1.0, full.retry_after_seconds))
        done = ticket.result(WARMING_SECONDS + HUNG_SECONDS)
        if isinstance(done, Unsound):
            raise done.error
        return done

    def _swap(self, generator: TextGenerator, version: ModelVersion) -> None:
        assert self._endpoint is not None
        self._endpoint.batch.swap(generator, version.fingerprint)

    def _ended(self, result: Literal["done", "failed"]) -> None:
        self._meters.add(meters.SWAPS, 1, result)


def limits_of(serving: Serving) -> Limits:
    """How much the engine of a replica takes on."""
    return Limits(slots=serving.slots, waiting=serving.waiting, patience_seconds=serving.patience_seconds)


def wanted_version(user_config: Any) -> ModelVersion:
    """The version that a user_config names; ConfigurationError where it names none, or more."""
    if not isinstance(user_config, Mapping):
        raise ConfigurationError(f"user_config: version, uri and digest of a model are needed, got {user_config!r}")
    return parse(Wanted, dict(user_config), source="user_config").known


def require_living(batch: InferenceEngine, hung_seconds: float) -> None:
    """Nothing where the engine works, or waits for work; EngineFailed where it can do nothing any more."""
    if not batch.alive:
        raise EngineFailed("the engine has failed; the log says why")
    if batch.beat_age_seconds > hung_seconds:
        raise EngineFailed(f"there is work, and the engine gave no sign of life for {hung_seconds:g} s")


def listening_host() -> str:
    """The address at which this cluster's Serve listens for HTTP, whatever the settings of one application say."""
    client = _get_global_client()
    assert client is not None
    return client.http_config.host or LOCAL  # None: no proxy runs


def require_guard(serving: Serving, listening: str) -> None:
    """Nothing where only this machine asks, or strangers meet a gate; ConfigurationError says what they would not meet.

    `listening` is where Serve's HTTP listens: another application of the cluster may have started it.
    """
    require_asked(serving, listening)
    require_intake(listening)


def require_intake(listening: str) -> None:
    """Nothing where Ray's proxy limits what comes in; ConfigurationError where it does not, and strangers may ask."""
    if os.environ.get(CALLBACK) == INTAKE:
        return
    message = f"{CALLBACK}={INTAKE} was not set where Ray was started: its proxy buffers bodies of any size"
    if not is_loopback(listening):
        raise ConfigurationError(f"{message}, and Serve listens on {listening}; set it, and start Ray again")
    log.warning("%s", message)
