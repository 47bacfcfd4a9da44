"""Benchmarked services: one model behind one Ray Serve three times, with three batching methods."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from ray import serve
from ray.serve.config import HTTPOptions

from cluster.benchmarking.static_batch import StaticBatch
from cluster.config import Cluster
from cluster.http.endpoint import Endpoint, make_app
from cluster.http.limits.settings import RequestLimits
from cluster.http.metrics.instruments import PrometheusMetrics
from cluster.runtime.ray_connection import connect
from edlm.inference.engine import InferenceEngine
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.request import Limits

Batching = Literal["continuous", "one", "static"]
MANY = 100_000  # requests that may wait: a benchmark rejects none
SECONDS = 3600.0
SHARE = 0.1  # of a core, nominally: the services are measured in turn


@serve.ingress()
class BenchmarkedService:
    """One service of the model; the services differ only in the engine."""

    def __init__(self, batching: Batching, bundle: str, slots: int, step_seconds: float, wait_seconds: float) -> None:
        torch.set_num_threads(1)
        engine = _engine(batching, open_bundle(Path(bundle)), slots, step_seconds, wait_seconds)
        endpoint = Endpoint(engine, RequestLimits(max_seconds=SECONDS, max_work=float(MANY)), PrometheusMetrics())
        endpoint.warm = True
        self._app = make_app(endpoint)

    def __serve_build_asgi_app__(self):
        return self._app


def _engine(
    batching: Batching, generator: TextGenerator, slots: int, step_seconds: float, wait_seconds: float
) -> InferenceEngine:
    version = f"{batching}/untrained"
    if batching == "continuous":
        return InferenceEngine(
            generator, version, Limits(slots=slots, waiting=MANY, step_seconds=step_seconds, patience_seconds=SECONDS)
        )
    size, wait = (slots, wait_seconds) if batching == "static" else (1, 0.0)
    return StaticBatch(generator, version, size, wait)


@contextmanager
def contestants(
    bundle: Path, slots: int, step_seconds: float, wait_seconds: float, port: int
) -> Iterator[dict[Batching, str]]:
    """Run the three services on a private Ray while the context is open, and yield their URLs."""
    kinds: tuple[Batching, ...] = ("continuous", "one", "static")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with connect(Cluster()):
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port, request_timeout_s=SECONDS))
        deployment = serve.deployment(
            ray_actor_options={"num_cpus": SHARE},
            num_replicas=1,
            max_ongoing_requests=MANY,
        )(BenchmarkedService)
        serve.run_many(
            [
                serve.RunTarget(
                    deployment.options(name=batching).bind(batching, str(bundle), slots, step_seconds, wait_seconds),
                    name=batching,
                    route_prefix=f"/{batching}",
                )
                for batching in kinds
            ]
        )
        try:
            yield {batching: f"http://127.0.0.1:{port}/{batching}" for batching in kinds}
        finally:
            serve.shutdown()
