"""Prometheus metrics of the endpoint; no label contains text from a client."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

ESSES = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Instrument:
    """A metric: its name, help text, labels, and the upper bounds of histogram buckets."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


REQUESTS = Instrument("counter", "edlm_requests_total", "Requests answered.", ("endpoint", "code", "finish_reason"))
E2E_SECONDS = Instrument(
    "histogram", "edlm_e2e_seconds", "Seconds from a request to the end of its response.", ("endpoint",), SECONDS
)
QUEUE_SECONDS = Instrument(
    "histogram", "edlm_queue_seconds", "Seconds from a request to its first engine step.", (), SECONDS
)
TIME_TO_FIRST_CHUNK = Instrument(
    "histogram",
    "edlm_time_to_first_chunk_seconds",
    "Seconds from a request to the first chunk of its stream.",
    (),
    SECONDS,
)
STEP_SECONDS = Instrument("histogram", "edlm_step_seconds", "Seconds per engine step.", (), SECONDS)
ENGINE_STEPS = Instrument("counter", "edlm_engine_steps_total", "Engine steps.")
BUSY_SECONDS = Instrument("counter", "edlm_busy_seconds_total", "Seconds spent in engine steps.")
TEXTS = Instrument("counter", "edlm_texts_total", "Texts and scores that ended, by reason.", ("reason",))
BATCH_FILL = Instrument("gauge", "edlm_batch_fill", "Mean rows per engine step, as a fraction of the slots.")
RUNNING = Instrument("gauge", "edlm_running", "Texts in a slot.")
WAITING = Instrument("gauge", "edlm_waiting", "Texts queued for a slot.")
BACKLOG_SECONDS = Instrument("gauge", "edlm_backlog_seconds", "Estimated seconds of queued and running work.")
TOKENS = Instrument("counter", "edlm_tokens_total", "Tokens generated.")
FORWARDS = Instrument("counter", "edlm_forwards_total", "Forward passes, by network.", ("model",))
ESS = Instrument("histogram", "edlm_ess", "Mean effective sample size of the candidates, per text.", (), ESSES)
CANCELLED = Instrument("counter", "edlm_cancelled_total", "Requests whose client disconnected.")
REJECTED = Instrument("counter", "edlm_rejected_total", "Requests rejected, by reason.", ("reason",))
BEAT_AGE_SECONDS = Instrument("gauge", "edlm_engine_beat_age_seconds", "Seconds since the engine last made progress.")
MODEL = Instrument("gauge", "edlm_model_info", "1 for the model that serves new requests.", ("version", "digest"))
SWAPS = Instrument("counter", "edlm_model_swap_total", "Model swaps, by result.", ("result",))
INSTRUMENTS = (
    REQUESTS, E2E_SECONDS, QUEUE_SECONDS, TIME_TO_FIRST_CHUNK, STEP_SECONDS, ENGINE_STEPS, BUSY_SECONDS, TEXTS,
    BATCH_FILL, RUNNING, WAITING, BACKLOG_SECONDS, TOKENS, FORWARDS, ESS, CANCELLED, REJECTED, BEAT_AGE_SECONDS,
    MODEL, SWAPS,
)  # fmt: skip


class Metrics(Protocol):
    """Sink of metric values; labels are in the order of `Instrument.labels`."""

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None: ...

    def set(self, instrument: Instrument, value: float, *labels: str) -> None: ...

    def observe(self, instrument: Instrument, value: float, *labels: str) -> None: ...

    def text(self) -> str:
        """Return all metrics of this process in Prometheus's text format, for GET /metrics."""
        ...


class PrometheusMetrics:
    """In-process metrics in a registry of their own."""

    def __init__(self, replica: str | None = None) -> None:
        """`replica`: a label of every series, for processes that answer at one address in turn."""
        self._constant = {} if replica is None else {"replica": replica}
        self._registry = CollectorRegistry(auto_describe=False)
        self._collectors: Mapping[Instrument, Any] = {
            instrument: _collector(instrument, self._registry) for instrument in INSTRUMENTS
        }
        self._model: tuple[str, ...] | None = None

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None:
        """Increase the counter by `amount`; raise ValueError if it is negative."""
        self._series(instrument, labels).inc(amount)

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Set the gauge to `value`."""
        self._series(instrument, labels).set(value)
        if instrument is MODEL:  # only one model serves new requests
            if self._model is not None and self._model != labels:
                self._collectors[MODEL].remove(*self._model)
            self._model = labels

    def observe(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Add `value` to the histogram."""
        self._series(instrument, labels).observe(value)

    def value(self, instrument: Instrument, *labels: str) -> float:
        """Return the value of a counter or gauge, or the sum of a histogram; 0 if nothing was recorded."""
        name = f"{instrument.name}_sum" if instrument.kind == "histogram" else instrument.name
        return self._registry.get_sample_value(name, dict(zip(instrument.labels, labels, strict=True))) or 0.0

    def text(self) -> str:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(_Exported(self._registry, self._constant)).decode()

    def _series(self, instrument: Instrument, labels: tuple[str, ...]) -> Any:
        collector = self._collectors[instrument]
        return collector.labels(*labels) if labels or instrument.labels else collector


class _Exported(Collector):
    """Collector of a registry's metrics with constant labels, and without `_created`.

    The library can omit the `_created` series only globally.
    """

    def __init__(self, registry: CollectorRegistry, constant: Mapping[str, str]) -> None:
        self._registry, self._constant = registry, constant

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, **self._constant})
                for sample in metric.samples
                if sample.name != f"{metric.name}_created"
            ]
            yield metric


def _collector(instrument: Instrument, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if instrument.kind == "histogram":
        return Histogram(
            instrument.name, instrument.text, instrument.labels, registry=registry, buckets=instrument.bounds
        )
    kind = Counter if instrument.kind == "counter" else Gauge
    return kind(instrument.name, instrument.text, instrument.labels, registry=registry)
