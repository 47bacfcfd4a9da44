"""Arrivals: requests and their times, decided before the first is sent, whatever the service does meanwhile."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product


@dataclass(frozen=True)
class PlannedRequest:
    """A request to be sent."""

    at: float
    """Seconds after the start."""
    steps: int
    candidates: int
    seed: int
    cancel_after: float | None = None
    """Seconds after which its client cancels it; None: never."""


def poisson(count: int, rate: float, seed: int) -> tuple[float, ...]:
    """Return the first `count` arrivals of a Poisson process of `rate` per second."""
    numbers = random.Random(seed)
    return tuple(accumulate(numbers.expovariate(rate) for _ in range(count)))


def plan(
    count: int,
    rate: float | None,
    steps: Sequence[int],
    candidates: Sequence[int],
    seed: int,
    cancelled_share: float = 0.0,
    cancel_seconds: float = 0.0,
) -> tuple[PlannedRequest, ...]:
    """Return `count` requests, each combination of steps and candidates equally often, shuffled by the seed.

    They arrive as a Poisson process, or all at once if `rate` is None. A share `cancelled_share` of them is cancelled,
    each after a time from 0 to `cancel_seconds`.
    """
    numbers = random.Random(seed)
    kinds = list(product(steps, candidates))
    chosen = [kinds[i % len(kinds)] for i in range(count)]
    numbers.shuffle(chosen)
    impatient = set(numbers.sample(range(count), round(cancelled_share * count)))
    arrivals = (0.0,) * count if rate is None else poisson(count, rate, seed)
    return tuple(
        PlannedRequest(
            arrivals[i], *chosen[i], seed + i, numbers.uniform(0, cancel_seconds) if i in impatient else None
        )
        for i in range(count)
    )


def together(*plans: Sequence[PlannedRequest]) -> tuple[PlannedRequest, ...]:
    """Merge the plans, in order of arrival."""
    return tuple(sorted((request for requests in plans for request in requests), key=lambda request: request.at))


def delayed(requests: Sequence[PlannedRequest], seconds: float) -> tuple[PlannedRequest, ...]:
    """Return the same requests, `seconds` later."""
    return tuple(replace(request, at=request.at + seconds) for request in requests)
