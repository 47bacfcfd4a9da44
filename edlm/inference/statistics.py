"""Engine statistics: counters of completed work, which only grow."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edlm.inference.progress import Text
from edlm.inference.request import reason_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statistics:
    """Snapshot of completed and current work; every count except `running` and `waiting` only grows.

    At any moment, submitted = the sum of `finished` + running + waiting.
    """

    submitted: int
    running: int
    waiting: int
    finished: Mapping[str, int]
    """By reason: stop, length, scored, cancelled, expired, broken, out of memory, failed."""
    rejected: Mapping[str, int]
    """By reason: waiting, patience, deadline, draining."""
    steps: int
    """Engine steps that did any work."""
    rows: int
    """Rows that took a denoising step, over all engine steps."""
    passes: Mapping[str, int]
    """Canvas passes, by network: `denoiser`, and the candidates of each energy by its name."""
    tokens: int
    """Unmasked tokens that belong to a text."""
    busy_seconds: float
    slots: int

    @property
    def fill(self) -> float:
        """Return the mean number of rows per engine step, as a fraction of the slots."""
        return self.rows / (self.steps * self.slots) if self.steps else 0.0


@dataclass
class EngineStatistics:
    """Mutable counters; a writer must hold the engine's lock."""

    submitted: int = 0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    finished: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    step_observers: list[Callable[[float], None]] = field(default_factory=list)
    """Called on the engine thread, under its lock, with the seconds of every step; one that raises is removed."""

    def count_step(self, seconds: float) -> None:
        """Count one engine step that did work, and its duration."""
        self.steps += 1
        self.busy_seconds += seconds
        for observe in tuple(self.step_observers):
            try:
                observe(seconds)
            except Exception:  # an exporter's own error must not end the engine, which would fail every request
                log.exception("an observer of engine steps failed and is removed")
                self.step_observers.remove(observe)

    def end(self, outcome: object) -> None:
        """Count one ended request by its outcome, a value or an error."""
        if isinstance(outcome, BaseException):
            reason = reason_of(outcome)
        else:
            reason = outcome.finish_reason if isinstance(outcome, Text) else "scored"
        self.finished[reason] += 1

    def statistics(self, running: int, waiting: int, passes: Mapping[str, int], slots: int) -> Statistics:
        """Return a snapshot of the counters together with the current load."""
        return Statistics(
            submitted=self.submitted,
            running=running,
            waiting=waiting,
            finished=dict(self.finished),
            rejected=dict(self.rejected),
            steps=self.steps,
            rows=self.rows,
            passes=dict(passes),
            tokens=self.tokens,
            busy_seconds=self.busy_seconds,
            slots=slots,
        )
