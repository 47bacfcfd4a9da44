"""Bridge from futures of the engine's thread to one coroutine, with coalesced notifications."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from edlm.inference.future import Future


class FutureWatch:
    """Wakes a coroutine on every change of a future if `steps`, else only when a future is done.

    Notifications are not queued: the coroutine reads the latest state when it wakes.
    """

    def __init__(self, futures: Sequence[Future[Any]], steps: bool) -> None:
        self._futures, self._steps, self._due = futures, steps, False
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        for future in futures:
            future.watch(partial(self._note, future))
        self._changed.set()  # for changes before the callbacks were registered

    async def changes(self) -> AsyncIterator[None]:
        """Yield whenever a future may have changed, until all are done."""
        done = False
        while not done:
            await self._changed.wait()
            self._changed.clear()
            self._due = False  # before the states are read, so that a change during reading wakes again
            done = all(future.done for future in self._futures)
            yield

    def _note(self, future: Future[Any]) -> None:
        """Callback in the engine's thread."""
        if not self._due and (self._steps or future.done):
            self._due = True
            self._loop.call_soon_threadsafe(self._changed.set)
