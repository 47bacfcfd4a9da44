"""Watchdog of a worker: ends its process, and says where it stands, if its training thread takes no step."""

import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

SHARE = 0.8
"""Of the collectives' timeout: the worker that hangs is named before the others, which wait for it, fail."""
COLLECTIVES = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")
SHOWN = 12  # innermost frames
LIBRARIES = ("site-packages", sysconfig.get_path("stdlib"))


def kill_this_process() -> None:
    """End this process at once: a thread that hangs in foreign code cannot be interrupted."""
    os.kill(os.getpid(), signal.SIGKILL)


class Watchdog(AbstractContextManager["Watchdog"]):
    """Watches the thread that opens it; `beat` says that it moves on.

    After `seconds` without a beat, `report(cause, stack)` and then `end` are called. Not where the thread waits in a
    collective for others: one of these hangs, or has died, and a collective has a timeout of its own.
    """

    def __init__(
        self, seconds: float, report: Callable[[str, str], None], end: Callable[[], None] = kill_this_process
    ) -> None:
        self._seconds, self._report, self._end = seconds, report, end
        self._beat, self._paused, self._done = time.monotonic(), False, threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Say that the thread moves on."""
        self._beat = time.monotonic()

    @contextmanager
    def paused(self):
        """Do not watch within: what waits there has a limit of its own."""
        self._paused = True
        try:
            yield
        finally:
            self.beat()
            self._paused = False

    def __enter__(self) -> "Watchdog":
        self._watched = threading.get_ident()
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            silent = time.monotonic() - self._beat
            if self._paused or silent < self._seconds:
                continue
            frame = sys._current_frames().get(self._watched)
            if frame is None or in_collective(frame):
                continue
            self._report(f"has taken no step for {silent:.0f} s; it stands at {standing_at(frame)}", stack_of(frame))
            self._end()
            return


def in_collective(frame: FrameType) -> bool:
    """Return whether the thread with this innermost frame is within a collective of torch or DeepSpeed."""
    return any(part in entry.filename for entry in traceback.extract_stack(frame) for part in COLLECTIVES)


def standing_at(frame: FrameType) -> str:
    """Return file, line and function of the innermost frame that is not a library's, and the line's source."""
    entries = traceback.extract_stack(frame)
    own = [entry for entry in entries if not any(library in entry.filename for library in LIBRARIES)]
    entry = (own or entries)[-1]
    source = f": {entry.line}" if entry.line else ""
    return f"{entry.filename}:{entry.lineno} in {entry.name}{source}"


def stack_of(frame: FrameType) -> str:
    """Return the innermost frames as text, innermost last."""
    return "".join(traceback.format_list(traceback.extract_stack(frame)[-SHOWN:]))
