"""A queue of requests for the one thread that owns the model."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
FIRST_GUESS = 0.01  # seconds for one unit of work, before anything was measured


class Full(Exception):
    """As many requests wait as may."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Abandoned(Exception):
    """Nobody waits for this request any more."""


class Queue:
    """Runs tasks one after the other in a thread of its own, in the order in which they came.

    At most `most` of them run or wait; each has `timeout_seconds` from the moment it comes.
    """

    def __init__(self, most: int, timeout_seconds: float) -> None:
        self.most, self.timeout_seconds = most, timeout_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._lock = threading.Lock()
        self._waiting, self._backlog = 0, 0
        self._seconds_per_unit = FIRST_GUESS

    async def run(self, work: int, task: Callable[[Callable[[], None]], Result]) -> Result:
        """What `task` returns, which is called in the thread with a function that ends it where nobody waits any more.

        `work` is its cost in units of any kind. Raises Full, TimeoutError, or what `task` raises.
        """
        abandoned = threading.Event()
        future = self._submit(work, task, abandoned)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await asyncio.wrap_future(future)
        finally:
            abandoned.set()

    def _submit(self, work: int, task: Callable[[Callable[[], None]], Result], abandoned: threading.Event) -> Future:
        def check() -> None:
            if abandoned.is_set():
                raise Abandoned

        def timed() -> Result:
            check()
            started = time.monotonic()
            result = task(check)
            self._seconds_per_unit = (time.monotonic() - started) / work
            return result

        def forget(_: Future) -> None:
            with self._lock:
                self._waiting, self._backlog = self._waiting - 1, self._backlog - work

        with self._lock:
            if self._waiting >= self.most:
                raise Full(max(1, math.ceil(self._backlog * self._seconds_per_unit)))
            self._waiting, self._backlog = self._waiting + 1, self._backlog + work
        future = self._thread.submit(timed)
        future.add_done_callback(forget)
        return future
