"""Replica: one copy of one model version on Ray Serve, which supports a hot swap to another version."""

import asyncio
import dataclasses
import gc
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from ray import serve
from ray.serve.context import _get_global_client

from cluster.config import Serving, is_loopback, require_asked
from cluster.http.endpoint import HUNG_SECONDS, Endpoint, make_app
from cluster.http.limits.settings import request_limits_of
from cluster.http.metrics import instruments
from cluster.http.middleware.access_log import log_to_file, log_to_standard_error
from cluster.http.warmup import COMPILED_ROWS, ONE_ROW, Rows, WarmupFailure, warmed, warming
from cluster.runtime.ray_connection import CALLBACK, INTAKE
from cluster.serving.autoscaling import BACKLOG
from cluster.serving.deferred_app import DeferredApp
from cluster.serving.model_cache import cached_model, model_cache
from cluster.serving.model_swap import ModelSwap
from cluster.serving.ray_metrics import RayMetrics
from cluster.tracking.model_version import ModelVersion
from edlm.config import ConfigurationError, config, parse
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import EngineFailed, Full, Limits
from edlm.models.execution import Execution
from edlm.redaction import redact_logs
from edlm.storage import Sha256

LOCAL = "127.0.0.1"
PASSES = 8.0  # approximate cost of a warm-up
COMPILING_SECONDS = 60.0  # without progress, while the engine compiles a shape that the warm-up did not cover
WARMING_SECONDS = 120.0  # timeout for the warm-up of a new model, beside requests of the old one
COMPILED_WARMING_SECONDS = 600.0  # which compiles, and on a GPU records hundreds of graphs; not yet seen on one
log = logging.getLogger(__name__)


@config
class TargetVersion:
    """Model that a replica is to serve, never an alias; Serve calls it `user_config`."""

    version: str
    """Number of the version in the model registry."""
    uri: str
    """URI of its folder."""
    digest: Sha256
    """SHA-256 of the folder's content; a folder with another one is refused."""

    @property
    def known(self) -> ModelVersion:
        return ModelVersion(version=self.version, uri=self.uri, digest=self.digest)


@serve.ingress()
class Replica:
    """Serve replica that loads the given model, answers, and reports its status; it never looks up the model itself."""

    def __init__(self, serving: Serving, logs: str | None = None) -> None:
        self._endpoint: Endpoint | None = None
        torch.set_num_threads(max(1, int(serving.cpus_per_replica)))  # more would spin against the other replicas
        redact_logs()
        log_to_standard_error()
        replica = serve.get_replica_context().replica_id.unique_id
        if logs is not None:
            log_to_file(Path(logs) / f"replica-{replica}.log")
        self._serving = serving
        self._device = "cuda" if serving.gpus_per_replica > 0 else "cpu"
        self._execution = Execution(precision=serving.precision, compiled=serving.compiled)
        self._rows = warmup_rows(serving)
        self._app, self._metrics = DeferredApp(), RayMetrics(replica)
        self._model_swap: ModelSwap[TextGenerator] | None = None
        self._drained = False

    def __serve_build_asgi_app__(self) -> DeferredApp:
        return self._app

    async def reconfigure(self, user_config: Any) -> None:
        """Load the first model, or start a hot swap, during which the old model answers.

        If the first model cannot be loaded, the replica does not start; the error says why. A later call never raises:
        a replica whose reconfiguration fails is killed, however well it answers.
        """
        if self._model_swap is None:
            first = target_version(user_config)
            require_guard(self._serving, await asyncio.to_thread(listening_host))
            generator = await asyncio.to_thread(self._first, first)
            self._endpoint = Endpoint(self._engine(generator, first), request_limits_of(self._serving), self._metrics)
            self._app.app = make_app(self._endpoint)
            self._model_swap = ModelSwap(first, self._load, self._swap, self._ended)
            self._endpoint.warm = True
            return
        try:
            self._model_swap.request(target_version(user_config))
        except ConfigurationError as error:
            self._model_swap.refuse(str(error))

    async def check_health(self) -> None:
        """Raise EngineFailed if the engine can no longer work; Serve then replaces this replica."""
        if self._endpoint is None or self._drained:
            return
        self._endpoint.engine_metrics.update()
        require_living(self._endpoint.engine, COMPILING_SECONDS if self._execution.compiled else HUNG_SECONDS)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the metric used by `cluster.serving.autoscaling`."""
        return {BACKLOG: 0.0 if self._endpoint is None else self._endpoint.engine.backlog_seconds}

    async def status(self) -> dict[str, Any]:
        """Return the status for the deployer: the models, the process id and the engine's statistics."""
        assert self._model_swap is not None
        assert self._endpoint is not None
        counts = dataclasses.asdict(self._endpoint.engine.statistics())
        return {**dataclasses.asdict(self._model_swap.status), "pid": os.getpid(), "counts": counts}

    async def drain(self, seconds: float) -> bool:
        """Accept no new requests and wait for the accepted ones, which fail after `seconds`.

        Returns whether all of them finished by themselves.
        """
        assert self._endpoint is not None
        self._drained = True
        return await asyncio.to_thread(self._endpoint.engine.drain, seconds)

    def __del__(self) -> None:
        if self._endpoint is not None:
            self._endpoint.engine.close()

    def _first(self, version: ModelVersion) -> TextGenerator:
        self._execution.require(self._device)
        generator = self._open(version, self._device)
        warmed(generator, self._rows)
        return generator

    def _open(self, version: ModelVersion, device: str) -> TextGenerator:
        cache = model_cache(self._serving.cache)
        with cached_model(version, cache, self._serving.sources) as folder:
            return open_bundle(folder, device, self._execution)

    def _engine(self, generator: TextGenerator, version: ModelVersion) -> InferenceEngine:
        return InferenceEngine(generator, version.fingerprint, limits_of(self._serving))

    def _load(self, version: ModelVersion) -> TextGenerator:
        """Open a model on the CPU, in this thread; the engine's thread, which alone uses the device, does the rest.

        Raises the error of an invalid model.
        """
        assert self._endpoint is not None
        generator = self._open(version, "cpu")
        timeout = COMPILED_WARMING_SECONDS if self._execution.compiled else WARMING_SECONDS
        if self._execution.compiled:
            gc.collect()  # an earlier model: compiled blocks refer to themselves
        if self._execution.compiled and self._device == "cpu":
            warmed(generator, self._rows)  # compiling here blocks no request of the old model
        engine, deadline = self._endpoint.engine, time.monotonic() + timeout
        while True:
            try:
                future = engine.run(PASSES, warming(generator, self._device, self._rows), "warming", deadline)
                break
            except Full as full:  # requests of the old model come first
                if time.monotonic() > deadline:
                    raise
                time.sleep(min(1.0, full.retry_after_seconds))
        result = future.result(timeout + HUNG_SECONDS)
        if isinstance(result, WarmupFailure):
            raise result.error
        return result

    def _swap(self, generator: TextGenerator, version: ModelVersion) -> None:
        assert self._endpoint is not None
        self._endpoint.engine.swap(generator, version.fingerprint)

    def _ended(self, result: Literal["done", "failed"]) -> None:
        self._metrics.add(instruments.SWAPS, 1, result)


def warmup_rows(serving: Serving) -> Rows:
    """Return the numbers of texts that a warm-up fills at once; on a GPU, graphs are recorded for all smaller ones."""
    if not serving.compiled:
        return ONE_ROW
    return (serving.slots,) if serving.gpus_per_replica > 0 else COMPILED_ROWS


def limits_of(serving: Serving) -> Limits:
    """Return the limits of a replica's engine."""
    return Limits(slots=serving.slots, waiting=serving.waiting, patience_seconds=serving.patience_seconds)


def target_version(user_config: Any) -> ModelVersion:
    """Return the version that a user_config names; raise ConfigurationError if it names none, or has other keys."""
    if not isinstance(user_config, Mapping):
        raise ConfigurationError(f"user_config: version, uri and digest of a model are needed, got {user_config!r}")
    return parse(TargetVersion, dict(user_config), source="user_config").known


def require_living(engine: InferenceEngine, hung_seconds: float) -> None:
    """Raise EngineFailed if the engine has failed, or has work but made no progress for `hung_seconds`."""
    if not engine.alive:
        raise EngineFailed("the engine has failed; see the log")
    if engine.beat_age_seconds > hung_seconds:
        raise EngineFailed(f"the engine has work and has made no progress for {hung_seconds:g} s")


def listening_host() -> str:
    """Return the address of this cluster's Serve HTTP proxy, whatever the settings of one application say."""
    client = _get_global_client()
    assert client is not None
    return client.http_config.host or LOCAL  # None: no proxy runs


def require_guard(serving: Serving, listening: str) -> None:
    """Raise ConfigurationError if remote clients can reach `listening` without the required key or request limits.

    `listening` is the address of Serve's HTTP proxy, which another application of the cluster may have started.
    """
    require_asked(serving, listening)
    require_intake(listening)


def require_intake(listening: str) -> None:
    """Raise ConfigurationError if Ray's proxy does not limit requests and remote clients can reach it; else warn."""
    if os.environ.get(CALLBACK) == INTAKE:
        return
    message = f"{CALLBACK}={INTAKE} was not set where Ray was started: its proxy buffers bodies of any size"
    if not is_loopback(listening):
        raise ConfigurationError(f"{message}, and Serve listens on {listening}; set it, and start Ray again")
    log.warning("%s", message)
