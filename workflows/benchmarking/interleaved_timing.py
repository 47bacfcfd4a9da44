"""Race: contestants with the same work run in turn, round after round, so that a slow machine slows all of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Lap:
    """A piece of work, and how often the whole work contains it: if a sample's steps are alike, one stands for many."""

    run: Callable[[], None]
    times: float = 1.0


@dataclass(frozen=True)
class RacedSampler:
    """A contestant, and the laps that make up its work."""

    name: str
    laps: Sequence[Lap]


@dataclass
class Times:
    """Seconds of the whole work, per round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def times_of(self, other: "Times") -> tuple[float, float, float]:
        """Return (median, least, most) of the other's time divided by this one's in the same round."""
        ratios = [other_seconds / seconds for seconds, other_seconds in zip(self.rounds, other.rounds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def race(
    contestants: Sequence[RacedSampler],
    rounds: int,
    device: torch.device,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Return all times by name, and say those of each round as it ends.

    A first warm-up round does not count; the order rotates round by round.
    """
    times = {contestant.name: Times() for contestant in contestants}
    for i in range(rounds + 1):
        first = i % len(contestants)
        seconds = {
            contestant.name: sum(lap.times * _seconds(lap.run, device, clock) for lap in contestant.laps)
            for contestant in (*contestants[first:], *contestants[:first])
        }
        if i > 0:
            for name, ours in times.items():
                ours.rounds.append(seconds[name])
        of_each = "; ".join(f"{name} {seconds[name]:.3g} s" for name in times)
        say(f"{f'round {i} of {rounds}' if i > 0 else 'warm-up round'}: {of_each}")
    return times


def _seconds(run: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def ratio_text(ratio: tuple[float, float, float]) -> str:
    """Return a ratio of `Times.times_of` as the cell of a table."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio)
