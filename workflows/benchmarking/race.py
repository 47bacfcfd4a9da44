"""A race: contestants that do the same work run one after the other, round after round, so that what slows the machine
slows all of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Lap:
    """A piece of work, and how often the whole work has it: of a sample whose steps are alike, one stands for many."""

    run: Callable[[], None]
    times: float = 1.0


@dataclass(frozen=True)
class RacedSampler:
    """Somebody who takes part, and what the whole of its work is made of."""

    name: str
    laps: Sequence[Lap]


@dataclass
class Times:
    """Seconds of the whole work in every round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def times_of(self, other: "Times") -> tuple[float, float, float]:
        """(median, least, most) of how many times as long as this one the other took in the same round."""
        ratios = [theirs / own for own, theirs in zip(self.rounds, other.rounds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def race(contestants: Sequence[RacedSampler], rounds: int, device: torch.device) -> dict[str, Times]:
    """The times of everybody by name. A first round warms up and does not count; the order turns round by round."""
    found = {one.name: Times() for one in contestants}
    for i in range(rounds + 1):
        turn = i % len(contestants)
        for one in (*contestants[turn:], *contestants[:turn]):
            seconds = sum(lap.times * _seconds(lap.run, device) for lap in one.laps)
            if i > 0:
                found[one.name].rounds.append(seconds)
    return found


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
