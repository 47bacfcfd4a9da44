"""Futures: handles to results that the engine's thread produces."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from edlm.inference.progress import Progress, Text

R = TypeVar("R")
log = logging.getLogger(__name__)


class Future(Generic[R]):
    """Pending result that ends exactly once, with a value or an error. Any thread may query and cancel it."""

    def __init__(self, version: str, wake: Callable[[], None]) -> None:
        self.version = version
        """Version of the model that produces the result."""
        self.submitted: float = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.cancelled = False
        self._wake = wake
        self._over = threading.Event()
        self._value: R | None = None
        self._error: Exception | None = None
        self._watchers: tuple[Callable[[], None], ...] = ()

    @property
    def done(self) -> bool:
        return self._over.is_set()

    def cancel(self) -> None:
        """Request cancellation: the future ends as Cancelled within a step, freeing its slot, unless it ends before."""
        self.cancelled = True
        self._wake()

    def watch(self, callback: Callable[[], None]) -> None:
        """Register `callback`, called in the engine's thread after every change; it must be fast.

        Earlier changes are not reported: check the state once after registering.
        """
        self._watchers = (*self._watchers, callback)

    def result(self, timeout: float | None = None) -> R:
        """Return the value once it is set. Raise the future's error, or TimeoutError after `timeout` seconds."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"no result after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def begin(self) -> None:
        """Record the start time, on the first call only."""
        if self.started is None:
            self.started = time.monotonic()

    def end(self, outcome: "R | Exception") -> None:
        """Set the outcome, a value or an error, and notify waiters and watchers."""
        assert not self.done, "a future ends once"
        if isinstance(outcome, Exception):
            self._error = outcome
        else:
            self._value = outcome
        self.ended = time.monotonic()
        self._over.set()
        self.notify()
        self._watchers = ()

    def notify(self) -> None:
        """Call every watcher, and remove those that raise."""
        for callback in self._watchers:
            try:
                callback()
            except Exception:  # the watcher's own error, e.g. a closed event loop, must not affect the others
                log.exception("a callback of a future failed and is removed")
                self._watchers = tuple(other for other in self._watchers if other is not callback)


class TextFuture(Future[Text]):
    """Future of a text, with its latest progress."""

    def __init__(self, version: str, wake: Callable[[], None], progress: Progress) -> None:
        super().__init__(version, wake)
        self._progress = progress

    def progress(self) -> Progress:
        """Return the latest progress; earlier progress is not kept."""
        return self._progress

    def show(self, progress: Progress) -> None:
        """Set the latest progress and call the watchers."""
        self._progress = progress
        self.notify()

    def keep(self, progress: Progress) -> None:
        """Set the latest progress without calling the watchers, because the end follows."""
        self._progress = progress

    def end(self, outcome: Text | Exception) -> None:
        """Set the outcome, keeping the latest progress with status `done`."""
        self._progress = replace(self._progress, status="done")
        super().end(outcome)
