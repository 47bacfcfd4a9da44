"""Metrics of a replica: exported by Ray from its node, and by the replica itself at GET /metrics."""

from collections.abc import Mapping
from typing import Any

from ray.serve import metrics

from cluster.http.metrics.instruments import INSTRUMENTS, MODEL, Instrument, PrometheusMetrics


class RayMetrics:
    """`Metrics` implemented by `ray.serve.metrics`; usable only inside a replica.

    Ray computes the sums of its histograms from the buckets; those of `text` are exact. As the replicas of a deployment
    answer at one address, each series of `text` names the `replica`.
    """

    def __init__(self, replica: str) -> None:
        self._metrics: Mapping[Instrument, Any] = {instrument: _made(instrument) for instrument in INSTRUMENTS}
        self._own = PrometheusMetrics(replica)
        self._model: tuple[str, ...] | None = None

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None:
        """Increase the counter by `amount`."""
        self._own.add(instrument, amount, *labels)
        if amount > 0:  # Ray rejects an increment of 0
            self._metrics[instrument].inc(amount, tags=_tags(instrument, labels))

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Set the gauge to `value`."""
        self._own.set(instrument, value, *labels)
        if instrument is MODEL:
            if self._model is not None and self._model != labels:
                # Ray keeps every series: that of the previous model is 0 from now on.
                self._metrics[MODEL].set(0, tags=_tags(MODEL, self._model))
            self._model = labels
        self._metrics[instrument].set(value, tags=_tags(instrument, labels))

    def observe(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Add `value` to the histogram."""
        self._own.observe(instrument, value, *labels)
        self._metrics[instrument].observe(value, tags=_tags(instrument, labels))

    def text(self) -> str:
        """Return all metrics of this replica in Prometheus's text format."""
        return self._own.text()


def _made(instrument: Instrument) -> Any:
    keys: Any = instrument.labels  # Ray's annotation permits one label; the code takes any number
    if instrument.kind == "histogram":
        return metrics.Histogram(instrument.name, instrument.text, boundaries=list(instrument.bounds), tag_keys=keys)
    kind = metrics.Counter if instrument.kind == "counter" else metrics.Gauge
    return kind(instrument.name, instrument.text, tag_keys=keys)


def _tags(instrument: Instrument, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(instrument.labels, labels, strict=True))
