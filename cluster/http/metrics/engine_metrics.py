"""Export of the engine's own statistics to the metrics."""

from cluster.http.metrics import instruments as meters
from cluster.http.metrics.instruments import Meters
from edlm.inference.engine import InferenceEngine
from edlm.inference.statistics import Statistics


class EngineMetrics:
    """Exporter that records what the engine did since the previous reading."""

    def __init__(self, batch: InferenceEngine, meters: Meters) -> None:
        self._batch, self._meters = batch, meters
        self._last = batch.statistics()

    def take(self) -> None:
        """Update the metrics from the current statistics of the engine."""
        now, before, metrics = self._batch.statistics(), self._last, self._meters
        self._last = now
        metrics.set(meters.RUNNING, now.running)
        metrics.set(meters.WAITING, now.waiting)
        metrics.set(meters.BACKLOG_SECONDS, self._batch.backlog_seconds)
        metrics.set(meters.BEAT_AGE_SECONDS, self._batch.beat_age_seconds)
        metrics.set(meters.BATCH_FILL, _fill(now, before))
        version, _, digest = self._batch.version.partition("/")
        metrics.set(meters.MODEL, 1, version, digest)
        metrics.add(meters.TOKENS, now.tokens - before.tokens)
        for network, count in now.passes.items():
            metrics.add(meters.FORWARDS, count - before.passes.get(network, 0), network)
        for reason, count in now.finished.items():
            metrics.add(meters.TEXTS, count - before.finished.get(reason, 0), reason)
        turns = now.turns - before.turns
        metrics.add(meters.TURNS, turns)
        for seconds in now.turn_seconds[max(0, len(now.turn_seconds) - turns) :]:
            metrics.observe(meters.STEP_SECONDS, seconds)
        metrics.add(meters.BUSY_SECONDS, now.busy_seconds - before.busy_seconds)


def _fill(now: Statistics, before: Statistics) -> float:
    """Return the mean rows per engine step since the previous reading, as a fraction of the slots."""
    turns = now.turns - before.turns
    return (now.rows - before.rows) / (turns * now.slots) if turns else 0.0
