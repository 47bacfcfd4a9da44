"""Entries: who is in the engine, from the moment they come to the end of their ticket."""

import time
from dataclasses import dataclass
from typing import Any

from edlm.bites import Bites
from edlm.draft import Draft
from edlm.fairness import Place
from edlm.ticket import Pending, Ticket
from edlm.turn import Turns


@dataclass(eq=False, kw_only=True)
class Writing(Place):
    """A text on its way, or waiting."""

    ticket: Ticket
    deadline: float
    draft: Draft
    seated: bool = False

    def seconds(self, turns: Turns, rows: int) -> float:
        """Of its next step or bite, in a batch of so many rows."""
        return turns.seconds(self.draft, rows)

    def left(self, turns: Turns, rows: int) -> float:
        """Seconds of all that it still needs."""
        return turns.of(self.draft, self.draft.left, rows)


@dataclass(eq=False, kw_only=True)
class Biting(Place):
    """Other work on the model."""

    ticket: Pending[Any]
    deadline: float
    bites: Bites[Any]
    expected: float
    """Seconds of all the bites to come."""
    latest: float
    """Seconds of the bite before, or of a first one."""
    seated: bool = False

    def seconds(self, turns: Turns, rows: int) -> float:
        return self.latest

    def left(self, turns: Turns, rows: int) -> float:
        return max(0.0, self.expected)

    def bite(self) -> None:
        """One bite. Raises StopIteration with the result, or what the work raises."""
        started = time.monotonic()
        next(self.bites)
        self.latest = time.monotonic() - started
        self.expected -= self.latest


Entry = Writing | Biting
