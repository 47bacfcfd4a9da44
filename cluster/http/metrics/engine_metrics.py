"""Readings of the engine: what it counts itself, brought to the meters."""

from cluster.http.metrics import instruments as meters
from cluster.http.metrics.instruments import Meters
from edlm.inference.engine import InferenceEngine
from edlm.inference.statistics import Statistics


class EngineMetrics:
    """Takes what the engine did since the reading before."""

    def __init__(self, batch: InferenceEngine, meters: Meters) -> None:
        self._batch, self._meters = batch, meters
        self._last = batch.statistics()

    def take(self) -> None:
        """Afterwards the meters show the engine as it is now."""
        now, before, own = self._batch.statistics(), self._last, self._meters
        self._last = now
        own.set(meters.RUNNING, now.running)
        own.set(meters.WAITING, now.waiting)
        own.set(meters.BACKLOG_SECONDS, self._batch.backlog_seconds)
        own.set(meters.BEAT_AGE_SECONDS, self._batch.beat_age_seconds)
        own.set(meters.BATCH_FILL, _fill(now, before))
        version, _, digest = self._batch.version.partition("/")
        own.set(meters.MODEL, 1, version, digest)
        own.add(meters.TOKENS, now.tokens - before.tokens)
        for network, count in now.passes.items():
            own.add(meters.FORWARDS, count - before.passes.get(network, 0), network)
        for reason, count in now.finished.items():
            own.add(meters.TEXTS, count - before.finished.get(reason, 0), reason)
        turns = now.turns - before.turns
        own.add(meters.TURNS, turns)
        for seconds in now.turn_seconds[max(0, len(now.turn_seconds) - turns) :]:
            own.observe(meters.STEP_SECONDS, seconds)
        own.add(meters.BUSY_SECONDS, now.busy_seconds - before.busy_seconds)


def _fill(now: Statistics, before: Statistics) -> float:
    """Rows of a turn since the reading before, a mean, as a share of the slots."""
    turns = now.turns - before.turns
    return (now.rows - before.rows) / (turns * now.slots) if turns else 0.0
