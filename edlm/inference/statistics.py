"""The ledger: what an engine has done so far, in counts that only grow."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edlm.inference.request import reason_of
from edlm.inference.text import Text

REMEMBERED = 4096  # turns whose seconds are kept


@dataclass(frozen=True)
class Statistics:
    """What was and is done; every count but `running` and `waiting` only grows.

    At any moment submitted = the sum of `finished` + running + waiting.
    """

    submitted: int
    running: int
    waiting: int
    finished: Mapping[str, int]
    """By reason: stop, length, scored, cancelled, expired, broken, out of memory, failed."""
    rejected: Mapping[str, int]
    """By reason: waiting, patience, deadline, draining."""
    turns: int
    """That did any work."""
    rows: int
    """Rows that took a step, over all turns."""
    passes: Mapping[str, int]
    """Of canvases, by network: `denoiser`, and the candidates of each energy by its name."""
    tokens: int
    """That were revealed and belong to a text."""
    busy_seconds: float
    turn_seconds: Sequence[float]
    """Of each of the last turns, the newest at the end."""
    slots: int

    @property
    def fill(self) -> float:
        """Rows of a turn, a mean over all, as a share of the slots."""
        return self.rows / (self.turns * self.slots) if self.turns else 0.0


@dataclass
class EngineStatistics:
    """The counts themselves; whoever holds the engine's lock may write."""

    submitted: int = 0
    turns: int = 0
    rows: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    turn_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    finished: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    def turn(self, seconds: float) -> None:
        """Afterwards one more turn did something, for so long."""
        self.turns += 1
        self.busy_seconds += seconds
        self.turn_seconds.append(seconds)

    def end(self, outcome: object) -> None:
        """Afterwards one more has ended, with this value or error."""
        if isinstance(outcome, BaseException):
            reason = reason_of(outcome)
        else:
            reason = outcome.finish_reason if isinstance(outcome, Text) else "scored"
        self.finished[reason] += 1

    def statistics(self, running: int, waiting: int, passes: Mapping[str, int], slots: int) -> Statistics:
        """A snapshot of it, beside what is on its way."""
        return Statistics(
            submitted=self.submitted,
            running=running,
            waiting=waiting,
            finished=dict(self.finished),
            rejected=dict(self.rejected),
            turns=self.turns,
            rows=self.rows,
            passes=dict(passes),
            tokens=self.tokens,
            busy_seconds=self.busy_seconds,
            turn_seconds=tuple(self.turn_seconds),
            slots=slots,
        )
