"""Continuous batching: texts join and leave between denoising steps, and one thread alone touches the model.

Whoever submits gets a ticket, and the latest state of it whenever they look: nothing queues up for who does not. A text
is a function of its job and the model, whoever shares its passes; tokens that are revealed never change.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from edlm.cooperative import Bites
from edlm.inference.batching import Batcher, is_out_of_memory
from edlm.inference.cost_model import PASS, Work
from edlm.inference.future import Future, TextFuture
from edlm.inference.generator import TextGenerator
from edlm.inference.request import BrokenRow, Cancelled, EngineFailed, Expired, Full, Limits, OutOfMemory, Request
from edlm.inference.scheduler import Entry, FairShare, ScheduledTask, ScheduledText, estimated_wait, select_running
from edlm.inference.sequence import RunningSequence
from edlm.inference.statistics import EngineStatistics, Statistics
from edlm.sampling.state import StepResult

T = TypeVar("T")
JOIN_SECONDS = 30.0  # the longest that one step may take when the engine is to stop
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionedGenerator:
    """A generator and what its version is called."""

    generator: TextGenerator
    version: str


class InferenceEngine:
    """The engine. Any thread may call it; close it, or use it as a context, or its thread goes on."""

    def __init__(self, generator: TextGenerator, version: str, limits: Limits) -> None:
        self.model, self.limits = VersionedGenerator(generator, version), limits
        self._changed = threading.Condition()
        self._entries: list[Entry] = []
        self._closed, self._stop = False, False
        self._to_follow = 0  # how many have more to bring in, once what they have here is over
        self._failure: BaseException | None = None
        self._turns, self._shares = Batcher(limits.slots, limits.turn_seconds), FairShare()
        self._ledger, self._order, self._beat = EngineStatistics(), 0, time.monotonic()
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "InferenceEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def generator(self) -> TextGenerator:
        """Of new texts."""
        return self.model.generator

    @property
    def version(self) -> str:
        """Of new texts."""
        return self.model.version

    def swap(self, generator: TextGenerator, version: str) -> None:
        """Afterwards new texts are the new model's; those that were submitted before are finished by their own."""
        self.model = VersionedGenerator(generator, version)

    def submit(self, jobs: Sequence[Request], model: VersionedGenerator | None = None) -> list[TextFuture]:
        """A ticket for each text, by `model` (None: the one of now; give the one that read the prompts).

        All are accepted or none; they have one key. Raises Full, EngineFailed, or ValueError where the model cannot do
        what is asked.
        """
        model = model or self.model
        most = self.limits.slots + self.limits.waiting
        if len(jobs) > most:
            raise ValueError(f"{len(jobs)} texts at once; at most {most} are on their way or wait here")
        drafts = [RunningSequence(job, model.generator) for job in jobs]
        with self._changed:
            self._require_open()
            now, rows = time.monotonic(), self._row_count(len(jobs))
            costs = [self._turns.of(draft, draft.left, rows) for draft in drafts]
            if jobs:
                self._require_room(jobs[0].key, sum(costs), now, min(job.deadline for job in jobs), len(jobs))
            self._count_in(len(jobs), now)
            entries = [
                ScheduledText(
                    key=job.key,
                    due=now + cost,
                    order=self._next(),
                    ticket=TextFuture(model.version, self._wake, draft.frame),
                    deadline=job.deadline,
                    draft=draft,
                )
                for job, draft, cost in zip(jobs, drafts, costs, strict=True)
            ]
            tickets = [entry.ticket for entry in entries]
            self._entries += entries
            self._changed.notify_all()
        return tickets

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Within, what was let in may be followed by more work (`run` with `follows`): a drain waits for it."""
        with self._changed:
            self._to_follow += 1
        try:
            yield
        finally:
            with self._changed:
                self._to_follow -= 1
                self._changed.notify_all()

    def run(self, cost: float, bites: Bites[T], key: str, deadline: float, follows: bool = False) -> Future[T]:
        """A ticket for other work on the model, `cost` passes of the denoiser in all, done a bite at a time.

        What `follows` work that was let in, within `kept_open`, is always let in. Raises Full or EngineFailed. A
        ValueError or FloatingPointError of the work is its ticket's.
        """
        with self._changed:
            self._require_open(follows)
            now, seconds = time.monotonic(), self._turns.pace.seconds(Work(cost), PASS, False, 1)
            if not follows:
                self._require_room(key, seconds, now, deadline, 1)
            self._count_in(1, now)
            ticket: Future[T] = Future(self.version, self._wake)
            entry = ScheduledTask(
                key=key, due=now + seconds, order=self._next(), ticket=ticket, deadline=deadline, bites=bites,
                expected=seconds, latest=min(seconds, self.limits.turn_seconds),
            )  # fmt: skip
            self._entries.append(entry)
            self._changed.notify_all()
        return ticket

    def estimate(self, jobs: Sequence[Request]) -> float:
        """Seconds that these texts would wait and take, if nobody else came."""
        drafts = [RunningSequence(job, self.generator) for job in jobs]
        with self._changed:
            own = sum(self._turns.of(draft, draft.left, self._row_count(len(jobs))) for draft in drafts)
            return own + (estimated_wait(self._backlog(), jobs[0].key, own) if jobs else 0.0)

    @property
    def backlog_seconds(self) -> float:
        """Seconds that everything takes that is on its way or waits."""
        with self._changed:
            return sum(self._backlog().values())

    @property
    def beat_age_seconds(self) -> float:
        """Since when nothing has moved although there is something to do; 0 where there is nothing."""
        with self._changed:
            return time.monotonic() - self._beat if self._entries else 0.0

    @property
    def alive(self) -> bool:
        """Whether it can do anything: what failed never comes back."""
        return self._failure is None and self._thread.is_alive()

    @property
    def closing(self) -> bool:
        """Whether it takes on nothing new because it is to stop, or has stopped; not where it failed."""
        return self._closed and self._failure is None

    def statistics(self) -> Statistics:
        """What was done so far."""
        with self._changed:
            running = sum(entry.running for entry in self._entries)
            waiting = len(self._entries) - running
            return self._ledger.statistics(running, waiting, self._turns.passes, self.limits.slots)

    def drain(self, timeout: float) -> bool:
        """Afterwards it is closed: nothing new was begun, and what was not over in `timeout` seconds has failed.

        True where everything came to its own end. Raises TimeoutError where the thread is stuck in a step.
        """
        with self._changed:
            self._closed = True
            done = self._changed.wait_for(lambda: not (self._entries or self._to_follow) or not self.alive, timeout)
            self._stop = True
            self._changed.notify_all()
        self._thread.join(JOIN_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"the engine's thread is stuck: its step takes more than {JOIN_SECONDS:g} s")
        return done and self._failure is None

    def close(self) -> None:
        """Afterwards it is closed, and what was on its way has failed."""
        self.drain(0.0)

    # ---------------------------------------------------------------- who may come in; the lock is held

    def _require_open(self, follows: bool = False) -> None:
        if self._failure is not None or (self._stop and self._closed):
            raise EngineFailed("the engine has failed" if self._failure is not None else "the engine is closed")
        if self._closed and not follows:
            self._refuse("draining", 1.0)

    def _require_room(self, key: str, seconds: float, now: float, deadline: float, count: int) -> None:
        """Full where there are too many, or where the wait would be too long; who is alone is always let in."""
        wait = estimated_wait(self._backlog(), key, seconds)
        if len(self._entries) + count > self.limits.slots + self.limits.waiting:
            self._refuse("waiting", wait)
        if wait > self.limits.patience_seconds:
            self._refuse("patience", wait - self.limits.patience_seconds)
        if wait > 0 and now + wait + seconds > deadline:
            self._refuse("deadline", now + wait + seconds - deadline)

    def _count_in(self, count: int, now: float) -> None:
        """Afterwards so many more are counted; they come in next."""
        self._ledger.submitted += count
        if not self._entries:
            self._beat = now  # until now there was nothing to move

    def _refuse(self, reason: str, retry_after_seconds: float) -> None:
        self._ledger.rejected[reason] += 1
        raise Full(max(1.0, retry_after_seconds), reason)

    def _backlog(self) -> dict[str, float]:
        """Seconds of work that is on its way or waits, by key."""
        backlog: dict[str, float] = {}
        for entry in self._entries:
            backlog[entry.key] = backlog.get(entry.key, 0.0) + entry.left(self._turns, self._row_count())
        return backlog

    def _row_count(self, more: int = 0) -> int:
        """How many rows a batch will have."""
        return max(1, min(len(self._entries) + more, self.limits.slots))

    def _next(self) -> int:
        self._order += 1
        return self._order

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # ---------------------------------------------------------------- the engine's thread

    def _live(self) -> None:
        try:
            while self._is_wanted():
                self._turn()
            self._abandon("the engine was stopped before this was finished")
        except BaseException as error:  # whatever it is, nobody may wait for ever
            log.exception("the engine failed")
            self._failure = error
            self._abandon(f"the engine failed ({type(error).__name__}), and everything on its way with it")

    def _is_wanted(self) -> bool:
        """Waits until there is something to do; False where it is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._stop)
            self._beat = time.monotonic()
            return not self._stop

    def _turn(self) -> None:
        """One step, or one bite, of as many as a turn has time for."""
        self._see_off()
        with self._changed:
            entries = list(self._entries)
            self._shares.keep(entry.key for entry in entries)
            here = select_running(entries, self.limits.slots)
            for entry in entries:
                entry.running = False
            for entry in here:
                entry.running = True
        if not here:
            return
        started = time.monotonic()
        chosen = self._shares.picked(
            here, lambda entry: entry.seconds(self._turns, len(here)), self.limits.turn_seconds
        )
        steps: list[ScheduledText] = []
        for entry in chosen:
            entry.ticket.begin()
            if isinstance(entry, ScheduledTask):
                self._bite(entry)
            elif not self._turns.is_heavy(entry.draft):
                steps.append(entry)
            elif (took := self._turns.bite(entry.draft)) is not None:
                self._take(entry, *took[1:])
        if steps:
            of = {entry.draft: entry for entry in steps}
            for draft, result, row in self._turns.step(list(of)):
                self._take(of[draft], result, row)
        with self._changed:
            self._ledger.turn(time.monotonic() - started)

    def _see_off(self) -> None:
        """Afterwards whoever is cancelled, too late, or had nothing to do has left."""
        now = time.monotonic()
        with self._changed:
            entries = list(self._entries)
        for entry in entries:
            if entry.ticket.cancelled:
                self._end(entry, Cancelled("nobody waits for this any more"))
            elif now > entry.deadline:
                self._end(entry, Expired("not finished by its deadline"))
            elif isinstance(entry, ScheduledText) and entry.draft.finished:
                self._end(entry, entry.draft.text())

    def _bite(self, entry: ScheduledTask) -> None:
        try:
            entry.bite()
        except StopIteration as end:
            self._end(entry, end.value)
        except (ValueError, FloatingPointError) as error:
            broken = BrokenRow(str(error)) if isinstance(error, FloatingPointError) else error
            self._end(entry, broken)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._end(entry, OutOfMemory("this work does not fit the memory"))

    def _take(self, entry: ScheduledText, result: StepResult | OutOfMemory | BrokenRow, row: int) -> None:
        """Afterwards the text has taken its step, and whoever watches it knows."""
        if isinstance(result, OutOfMemory | BrokenRow):
            self._end(entry, result)
            return
        before = entry.draft.frame.masked
        try:
            entry.draft.take(result, row)
        except BrokenRow as error:
            self._end(entry, error)
            return
        with self._changed:
            self._ledger.rows += 1
            self._ledger.tokens += before - entry.draft.frame.masked
        if entry.draft.finished:
            entry.ticket.keep(entry.draft.frame)
            self._end(entry, entry.draft.text())
        else:
            entry.ticket.show(entry.draft.frame)

    def _end(self, entry: Entry, outcome: Any) -> None:
        """Afterwards the entry's place is free, and its ticket over."""
        if isinstance(outcome, Exception):
            outcome = outcome.with_traceback(None)  # its frames would hold on to the model
        with self._changed:
            self._ledger.end(outcome)
            self._entries.remove(entry)
            self._changed.notify_all()
        if isinstance(entry, ScheduledText):
            self._turns.forget(entry.draft)
        entry.ticket.end(outcome)

    def _abandon(self, why: str) -> None:
        """Afterwards everybody has failed."""
        while True:
            with self._changed:
                if not self._entries:
                    return
                entry = self._entries[0]
            self._end(entry, EngineFailed(why))
