"""Export of the engine's own statistics to the metrics."""

from cluster.http.metrics import instruments
from cluster.http.metrics.instruments import Metrics
from edlm.inference.engine import InferenceEngine
from edlm.inference.statistics import Statistics


class EngineMetrics:
    """Exporter of the engine's statistics: step durations as they occur, everything else at each update."""

    def __init__(self, engine: InferenceEngine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        engine.step_observers.append(lambda seconds: metrics.observe(instruments.STEP_SECONDS, seconds))
        self._last = engine.statistics()

    def update(self) -> None:
        """Update the metrics from the current statistics of the engine."""
        now, before, metrics = self._engine.statistics(), self._last, self._metrics
        self._last = now
        metrics.set(instruments.RUNNING, now.running)
        metrics.set(instruments.WAITING, now.waiting)
        metrics.set(instruments.BACKLOG_SECONDS, self._engine.backlog_seconds)
        metrics.set(instruments.BEAT_AGE_SECONDS, self._engine.beat_age_seconds)
        metrics.set(instruments.BATCH_FILL, _fill(now, before))
        version, _, digest = self._engine.version.partition("/")
        metrics.set(instruments.MODEL, 1, version, digest)
        metrics.add(instruments.TOKENS, now.tokens - before.tokens)
        for network, count in now.passes.items():
            metrics.add(instruments.FORWARDS, count - before.passes.get(network, 0), network)
        for reason, count in now.finished.items():
            metrics.add(instruments.TEXTS, count - before.finished.get(reason, 0), reason)
        metrics.add(instruments.ENGINE_STEPS, now.steps - before.steps)
        metrics.add(instruments.BUSY_SECONDS, now.busy_seconds - before.busy_seconds)


def _fill(now: Statistics, before: Statistics) -> float:
    """Return the mean rows per engine step since the previous update, as a fraction of the slots."""
    steps = now.steps - before.steps
    return (now.rows - before.rows) / (steps * now.slots) if steps else 0.0
