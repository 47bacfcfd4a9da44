"""Tickets: what somebody holds who waits for something that the engine's thread makes."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from edlm.inference.text import Progress, Text

R = TypeVar("R")
log = logging.getLogger(__name__)


class Future(Generic[R]):
    """A result to come: exactly one thing becomes of it, a value or an error. Any thread may ask and cancel."""

    def __init__(self, version: str, wake: Callable[[], None]) -> None:
        self.version = version
        """Of the model that makes it."""
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
        """Afterwards it ends as Cancelled within a step, unless it is over before; its place is then free."""
        self.cancelled = True
        self._wake()

    def watch(self, callback: Callable[[], None]) -> None:
        """Afterwards `callback` is called in the engine's thread after every change; it must be quick.

        What changed before was not told: look once after this.
        """
        self._watchers = (*self._watchers, callback)

    def result(self, timeout: float | None = None) -> R:
        """The value, once it is there; raises its error, or TimeoutError after `timeout` seconds."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"no result after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def begin(self) -> None:
        """Afterwards it counts as started."""
        if self.started is None:
            self.started = time.monotonic()

    def end(self, outcome: "R | Exception") -> None:
        """Afterwards it is over, and whoever waits knows."""
        assert not self.done, "a ticket ends once"
        if isinstance(outcome, Exception):
            self._error = outcome
        else:
            self._value = outcome
        self.ended = time.monotonic()
        self._over.set()
        self.tell()
        self._watchers = ()

    def tell(self) -> None:
        """Afterwards everyone who watches was called; whoever could not be told is not called again."""
        for callback in self._watchers:
            try:
                callback()
            except Exception:  # the watcher's own, as of an event loop that is closed: others must not suffer from it
                log.exception("whoever watched a text could not be told of its change")
                self._watchers = tuple(other for other in self._watchers if other is not callback)


class TextFuture(Future[Text]):
    """A text to come, and how far it is."""

    def __init__(self, version: str, wake: Callable[[], None], frame: Progress) -> None:
        super().__init__(version, wake)
        self._frame = frame

    def frame(self) -> Progress:
        """The latest state; the one before is gone."""
        return self._frame

    def show(self, frame: Progress) -> None:
        """Afterwards `frame` is the latest state, and whoever watches was called."""
        self._frame = frame
        self.tell()

    def keep(self, frame: Progress) -> None:
        """Afterwards `frame` is the latest state; nobody was told, for the end follows."""
        self._frame = frame

    def end(self, outcome: Text | Exception) -> None:
        """Afterwards it is over, in the state in which it was."""
        self._frame = replace(self._frame, status="done")
        super().end(outcome)
