"""Fair scheduler: selects the running requests and the participants of each engine step.

API keys share the work equally, however much each requests: the least-served key goes first. Within a key, the order
is that of due times, the arrival plus the estimated duration alone: short requests overtake, for a bounded time, and
long ones do not starve.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edlm.cooperative_work import Cooperative
from edlm.inference.batch_executor import BatchExecutor
from edlm.inference.future import Future, TextFuture
from edlm.inference.sequence import RunningSequence


@dataclass(eq=False)
class ScheduledRequest:
    """Scheduling state of one request."""

    key: str
    due: float
    order: int
    """Order of arrival."""
    last: int = 0
    """Number of the pick that last picked it."""

    @property
    def has_step(self) -> bool:
        """Whether work is left; a text of no token has none from the beginning."""
        return True


P = TypeVar("P", bound=ScheduledRequest)


def select_running(requests: Iterable[P], slots: int) -> list[P]:
    """Select up to `slots` requests: round-robin over API keys, earliest due first within a key."""
    by_key: dict[str, int] = {}
    ranked = []
    for request in sorted(requests, key=lambda request: (request.due, request.order)):
        rank = by_key.get(request.key, 0)
        by_key[request.key] = rank + 1
        ranked.append((rank, request))
    return [request for _, request in sorted(ranked, key=lambda pair: pair[0])[:slots]]


def estimated_wait(by_key: Mapping[str, float], key: str, seconds: float) -> float:
    """Return the seconds by which existing work, given in seconds by key, delays `seconds` more work of `key`.

    All existing work of `key` counts, and of each other key at most as much as `key` then has, because keys share
    equally.
    """
    before = by_key.get(key, 0.0)
    return before + sum(min(other_seconds, before + seconds) for other, other_seconds in by_key.items() if other != key)


class FairShare:
    """Seconds of work served per key, as far as they affect the remaining work."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._picks = 0

    def keep(self, keys: Iterable[str]) -> None:
        """Keep the shares of these keys only; a new key starts level with the least-served one."""
        active = dict.fromkeys(keys)
        least = min((self._served[key] for key in active if key in self._served), default=0.0)
        self._served = {key: self._served.get(key, least) - least for key in active}

    def picked(self, requests: Sequence[P], seconds: Callable[[P], float], budget: float) -> list[P]:
        """Select the participants of an engine step: least-served key first, within a key the longest-waiting request.

        Select at least one, and more while their total seconds stay within the budget, and charge their keys. The next
        request in line is never passed over for being large.
        """
        queues: dict[str, list[P]] = {}
        for request in sorted(requests, key=lambda request: (request.last, request.due, request.order), reverse=True):
            queues.setdefault(request.key, []).append(request)
        chosen: list[P] = []
        total = largest = 0.0
        while queues:
            key = min(queues, key=lambda key: self._served[key])
            cost = seconds(queues[key][-1])
            if chosen and total + cost > budget:
                break
            request = queues[key].pop()
            self._picks += 1
            self._served[key] += cost
            request.last, total, largest = self._picks, total + cost, max(largest, cost)
            chosen.append(request)
            if not queues[key]:
                del queues[key]
        # A key that requests less than its share saves up at most one engine step of work.
        largest = max(largest, *(seconds(queue[-1]) for queue in queues.values()), 0.0)
        floor = max(self._served.values(), default=0.0) - budget - largest
        self._served = {key: max(served, floor) for key, served in self._served.items()}
        return chosen


@dataclass(eq=False, kw_only=True)
class ScheduledText(ScheduledRequest):
    """Running or waiting text."""

    future: TextFuture
    deadline: float
    sequence: RunningSequence
    running: bool = False

    @property
    def has_step(self) -> bool:
        return not self.sequence.finished

    def seconds(self, executor: BatchExecutor, rows: int) -> float:
        """Return the seconds of its next step, or until its next pause, in a batch of `rows` rows."""
        return executor.seconds(self.sequence, rows)

    def remaining_seconds(self, executor: BatchExecutor, rows: int) -> float:
        """Return the seconds of all remaining work."""
        return executor.remaining_seconds(self.sequence, rows)


@dataclass(eq=False, kw_only=True)
class ScheduledTask(ScheduledRequest):
    """Other cooperative work on the model."""

    future: Future[Any]
    deadline: float
    work: Cooperative[Any]
    expected: float
    """Estimated seconds of all remaining work."""
    latest: float
    """Seconds up to the latest pause, or estimated for the first."""
    running: bool = False

    def seconds(self, executor: BatchExecutor, rows: int) -> float:
        return self.latest

    def remaining_seconds(self, executor: BatchExecutor, rows: int) -> float:
        return max(0.0, self.expected)

    def resume(self) -> None:
        """Run up to the next pause. Raise StopIteration with the result, or the error of the work."""
        started = time.monotonic()
        next(self.work)
        self.latest = time.monotonic() - started
        self.expected -= self.latest


Entry = ScheduledText | ScheduledTask
