"""Graceful stop: a first SIGTERM or SIGINT is remembered, so that a training can save; a second ends the command."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """The signal that asked the command to stop; None until one did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal. Raise SystemExit, with the status of the signal, at any later one."""
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Yield the request that signals make while the context is open; on exit the handlers are as they were.

    Only the main thread of a program receives signals: in any other the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
