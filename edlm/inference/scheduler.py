"""Fairness: who is on their way, and whose step is next.

Keys share the work alike, however much each asks for: the key that was served least goes first. Within a key a text
stands where its due time puts it, the moment it came plus the time that it would take alone: a short one passes a long
one, but only for as long as the long one would take, so that nobody waits for ever.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edlm.cooperative import Bites
from edlm.inference.batching import Batcher
from edlm.inference.future import Future, TextFuture
from edlm.inference.sequence import RunningSequence


@dataclass(eq=False)
class ScheduledRequest:
    """Where somebody stands."""

    key: str
    due: float
    order: int
    """In which order they came."""
    last: int = 0
    """When it was last picked, counted in picks."""


P = TypeVar("P", bound=ScheduledRequest)


def select_running(places: Iterable[P], slots: int) -> list[P]:
    """Who is on their way: at most `slots`, the keys taking turns, each with its due ones first."""
    by_key: dict[str, int] = {}
    ranked = []
    for place in sorted(places, key=lambda place: (place.due, place.order)):
        rank = by_key.get(place.key, 0)
        by_key[place.key] = rank + 1
        ranked.append((rank, place))
    return [place for _, place in sorted(ranked, key=lambda one: one[0])[:slots]]


def estimated_wait(by_key: Mapping[str, float], key: str, seconds: float) -> float:
    """How long what is there already, in seconds of work by key, holds up `seconds` more of a key.

    All that the key has itself, and of each other one as much again at most, for keys share alike.
    """
    before = by_key.get(key, 0.0)
    return before + sum(min(left, before + seconds) for other, left in by_key.items() if other != key)


class FairShare:
    """How many seconds of work each key had, as far as it matters for what is still to do."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._picks = 0

    def keep(self, keys: Iterable[str]) -> None:
        """Afterwards these keys alone have shares; a new one begins level with the one that had least."""
        active = dict.fromkeys(keys)
        least = min((self._served[key] for key in active if key in self._served), default=0.0)
        self._served = {key: self._served.get(key, least) - least for key in active}

    def picked(self, places: Sequence[P], seconds: Callable[[P], float], budget: float) -> list[P]:
        """Who takes part in this turn: the key served least first, of it whoever waited longest.

        At least one does, and others while the seconds that all of them take stay within the budget. Their keys are
        charged. Nobody who is next in line is passed over for being large.
        """
        lines: dict[str, list[P]] = {}
        for place in sorted(places, key=lambda place: (place.last, place.due, place.order), reverse=True):
            lines.setdefault(place.key, []).append(place)
        chosen: list[P] = []
        total = dearest = 0.0
        while lines:
            key = min(lines, key=lambda key: self._served[key])
            cost = seconds(lines[key][-1])
            if chosen and total + cost > budget:
                break
            place = lines[key].pop()
            self._picks += 1
            self._served[key] += cost
            place.last, total, dearest = self._picks, total + cost, max(dearest, cost)
            chosen.append(place)
            if not lines[key]:
                del lines[key]
        # Who asks for less than its share saves up a turn's worth at most.
        dearest = max(dearest, *(seconds(line[-1]) for line in lines.values()), 0.0)
        floor = max(self._served.values(), default=0.0) - budget - dearest
        self._served = {key: max(had, floor) for key, had in self._served.items()}
        return chosen


@dataclass(eq=False, kw_only=True)
class ScheduledText(ScheduledRequest):
    """A text on its way, or waiting."""

    ticket: TextFuture
    deadline: float
    draft: RunningSequence
    running: bool = False

    def seconds(self, turns: Batcher, rows: int) -> float:
        """Of its next step or bite, in a batch of so many rows."""
        return turns.seconds(self.draft, rows)

    def left(self, turns: Batcher, rows: int) -> float:
        """Seconds of all that it still needs."""
        return turns.of(self.draft, self.draft.left, rows)


@dataclass(eq=False, kw_only=True)
class ScheduledTask(ScheduledRequest):
    """Other work on the model."""

    ticket: Future[Any]
    deadline: float
    bites: Bites[Any]
    expected: float
    """Seconds of all the bites to come."""
    latest: float
    """Seconds of the bite before, or of a first one."""
    running: bool = False

    def seconds(self, turns: Batcher, rows: int) -> float:
        return self.latest

    def left(self, turns: Batcher, rows: int) -> float:
        return max(0.0, self.expected)

    def bite(self) -> None:
        """One bite. Raises StopIteration with the result, or what the work raises."""
        started = time.monotonic()
        next(self.bites)
        self.latest = time.monotonic() - started
        self.expected -= self.latest


Entry = ScheduledText | ScheduledTask
