"""Watchdog of a worker: ends its process, and says where it stands, if its training thread takes no step.

Of several ranks one hangs and the others wait for it. It is the one that has entered the fewest collectives, or the one
whose process says nothing any more.
"""

import math
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Protocol

from torch.distributed import distributed_c10d

from cluster.training import timed_collectives
from cluster.training.standing import Standing

SHARE = 0.8
"""Of the collectives' timeout: the worker that hangs is named before the others, which wait for it, fail."""
STOPPED_SHARE = 0.75
"""Of a watchdog's seconds, after which it looks for ranks that are stopped: these are named well before the timeout."""
TIMER = timed_collectives.__file__  # around the collectives of a step, and the waits for them
COLLECTIVES = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}", TIMER)
LONGEST_PAUSE = 5.0  # seconds between two looks
SHOWN = 12  # innermost frames
LIBRARIES = ("site-packages", sysconfig.get_path("stdlib"), TIMER)


def kill_this_process() -> None:
    """End this process at once: a thread that hangs in foreign code cannot be interrupted."""
    os.kill(os.getpid(), signal.SIGKILL)


def collectives_entered() -> int:
    """Return how many collectives this process has entered (with NCCL, put into the GPU's queue), in all its groups.

    All ranks enter the same ones, and torch's backends count them. So the rank with the lowest number is the one that
    the others wait for, wherever their threads stand: with NCCL, that is at the next line that needs a value.
    """
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)


class Rank(Protocol):
    """A rank among others (`cluster.training.monitor.MonitoredRank`)."""

    def stand(self, collectives: int, silent: float, waits: bool) -> None:
        """Say, without waiting, where this rank stands (`Standing`)."""
        ...

    def leave(self) -> None:
        """Say, without waiting, that this rank is watched no more."""
        ...

    def others(self) -> Mapping[int, Standing]:
        """Return what the other ranks said last; nothing if that is not known."""
        ...

    def hangs(self, cause: str, stack: str) -> None:
        """Report that this rank hangs."""
        ...

    def is_stopped(self, rank: int, standing: Standing, cause: str) -> None:
        """Report that another rank says nothing any more."""
        ...


class Watchdog(AbstractContextManager["Watchdog"]):
    """Watches the thread that opens it; `beat`, and a collective that it enters, say that it moves on.

    `seconds` without that are too long while others wait, and for a step (`stepping`); what else the thread does has
    `limit` seconds. Then the rank is reported and its process ended. Not where it waits in a collective for others: one
    of these hangs, or has died, and a collective has a timeout of its own.
    """

    def __init__(
        self,
        seconds: float,
        limit: float,
        rank: Rank,
        end: Callable[[], None] = kill_this_process,
        entered: Callable[[], int] = collectives_entered,
    ) -> None:
        self._seconds, self._limit, self._rank, self._end, self._entered = seconds, limit, rank, end, entered
        self._beat, self._collectives, self._done = time.monotonic(), 0, threading.Event()
        self._stopped: set[int] = set()  # ranks that were reported
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Say that the thread moves on."""
        self._beat = time.monotonic()

    def stepping(self) -> AbstractContextManager[None]:
        """Expect a beat every `seconds` within."""
        return self._within(self._seconds)

    def paused(self) -> AbstractContextManager[None]:
        """Do not watch within, unless others wait: what waits there has a limit of its own."""
        return self._within(math.inf)

    @contextmanager
    def _within(self, limit: float) -> Iterator[None]:
        before, self._limit = self._limit, limit
        self.beat()
        try:
            yield
        finally:
            self.beat()
            self._limit = before

    def __enter__(self) -> "Watchdog":
        self._watched = threading.get_ident()
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        self._rank.leave()

    def _watch(self) -> None:
        while not self._done.wait(min(LONGEST_PAUSE, self._seconds / 16)):
            entered = self._entered()
            if entered != self._collectives:
                self._collectives = entered
                self.beat()
            silent = time.monotonic() - self._beat
            if (frame := sys._current_frames().get(self._watched)) is None:
                continue
            waits = in_collective(frame)
            self._rank.stand(entered, silent, waits)
            if silent < STOPPED_SHARE * self._seconds:
                continue
            others = self._rank.others()
            self._report_stopped(others)
            if silent < self._seconds:
                continue
            awaited = _is_awaited(entered, waits, others, self._seconds / 2)
            alone = silent >= self._limit and not waits and all(one.collectives == entered for one in others.values())
            if not self._stopped and (awaited or alone):
                alike = ", as have all other ranks" if others and not awaited else ""
                cause = f"has taken no step for {silent:.0f} s{alike}; it stands at {standing_at(frame)}"
                self._rank.hangs(cause, stack_of(frame))
                self._end()
                return

    def _report_stopped(self, others: Mapping[int, Standing]) -> None:
        """Report the ranks that say nothing any more. The attempt ends as the group's timeout ends this rank."""
        for rank, standing in others.items():
            if standing.unheard >= self._seconds / 2 and rank not in self._stopped:
                self._stopped.add(rank)
                cause = f"has said nothing for {standing.unheard:.0f} s: its process is stopped, or cannot be reached"
                self._rank.is_stopped(rank, standing, cause)


def _is_awaited(entered: int, waits: bool, others: Mapping[int, Standing], seconds: float) -> bool:
    """Return whether other ranks have waited for this one for `seconds`, and none of them is behind it.

    A rank that waits has entered more collectives, or stands in one that this rank does not stand in.
    """
    if any(other.collectives < entered for other in others.values()):
        return False
    ahead = (other for other in others.values() if other.collectives > entered or (other.waits and not waits))
    return any(other.silent >= seconds for other in ahead)


def in_collective(frame: FrameType) -> bool:
    """Return whether the thread with this innermost frame is within a collective of torch or DeepSpeed."""
    files = (entry.f_code.co_filename for entry, _ in traceback.walk_stack(frame))
    return any(part in file for file in files for part in COLLECTIVES)


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
