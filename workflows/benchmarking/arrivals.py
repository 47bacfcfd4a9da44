"""Arrivals: which requests come when, decided before the first is sent, whatever the service does meanwhile."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product


@dataclass(frozen=True)
class Planned:
    """A request that is going to be sent."""

    at: float
    """Seconds after the start."""
    steps: int
    candidates: int
    seed: int
    cancel_after: float | None = None
    """Seconds after which its client gives up; None: never."""


def poisson(count: int, rate: float, seed: int) -> tuple[float, ...]:
    """The first `count` arrivals of a Poisson process of `rate` a second."""
    numbers = random.Random(seed)
    return tuple(accumulate(numbers.expovariate(rate) for _ in range(count)))


def plan(
    count: int,
    rate: float | None,
    steps: Sequence[int],
    candidates: Sequence[int],
    seed: int,
    cancels: float = 0.0,
    cancel_seconds: float = 0.0,
) -> tuple[Planned, ...]:
    """`count` requests, each combination of steps and candidates equally often, in an order that the seed shuffles.

    They come as a Poisson process, or all at once where `rate` is None; of them the share `cancels` is given up, each
    after a time from 0 to `cancel_seconds`.
    """
    numbers = random.Random(seed)
    kinds = list(product(steps, candidates))
    chosen = [kinds[i % len(kinds)] for i in range(count)]
    numbers.shuffle(chosen)
    impatient = set(numbers.sample(range(count), round(cancels * count)))
    at = (0.0,) * count if rate is None else poisson(count, rate, seed)
    return tuple(
        Planned(at[i], *chosen[i], seed + i, numbers.uniform(0, cancel_seconds) if i in impatient else None)
        for i in range(count)
    )


def together(*plans: Sequence[Planned]) -> tuple[Planned, ...]:
    """All of them, in the order in which they come."""
    return tuple(sorted((one for each in plans for one in each), key=lambda one: one.at))


def delayed(requests: Sequence[Planned], seconds: float) -> tuple[Planned, ...]:
    """The same, so much later."""
    return tuple(replace(one, at=one.at + seconds) for one in requests)
