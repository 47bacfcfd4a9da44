"""A watch on work of another thread: it wakes one coroutine, however often there is something new."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from edlm.inference.future import Future


class FutureWatch:
    """With `steps` every change of one of the tickets wakes; without, only the end of one.

    Nothing is queued: who wakes looks at the latest state.
    """

    def __init__(self, tickets: Sequence[Future[Any]], steps: bool) -> None:
        self._tickets, self._steps, self._due = tickets, steps, False
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        for ticket in tickets:
            ticket.watch(partial(self._note, ticket))
        self._changed.set()  # what changed before anybody watched

    async def changes(self) -> AsyncIterator[None]:
        """One item for each time that something may have changed, up to the end of all."""
        done = False
        while not done:
            await self._changed.wait()
            self._changed.clear()
            self._due = False  # before anybody looks: what changes while they do wakes again
            done = all(ticket.done for ticket in self._tickets)
            yield

    def _note(self, ticket: Future[Any]) -> None:
        """In the engine's thread."""
        if not self._due and (self._steps or ticket.done):
            self._due = True
            self._loop.call_soon_threadsafe(self._changed.set)
