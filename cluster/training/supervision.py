"""Supervision of a training by its command: bounded restarts that name their cause, and stops that save first.

Ray Train runs one attempt. What ended it, and whether there is another, is decided here: so the death of Ray Train's
own actors is survived like that of a worker, and no error of a user is met twice.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray._private.state import state as cluster_state
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from cluster.runtime.graceful_stop import StopRequest, stop_request
from cluster.training.monitor import Monitor
from cluster.training.outcomes import TrainingFailed, TrainingStopped, WorkerReport
from edlm.redaction import redacted_text

POLL_SECONDS = 0.5
GROWTH_SECONDS = 15.0  # for which there must be room for more workers: a start costs as much
REASONS = (  # the first domino first
    (OutOfMemoryError, "was killed, for its machine ran out of memory"),
    (RayActorError, "died: its process was killed, or its machine is gone"),
    (WorkerHealthCheckTimeoutError, "does not answer: its process is stopped, or its machine cannot be reached"),
)
STARTING = ("WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError")


@dataclass(frozen=True)
class Restarts:
    """How often a training is started again, and how long it waits for lost machines."""

    limit: int
    recovery_seconds: float
    ready: Callable[[float], None]
    """Waits up to so many seconds for the workers' resources; raises ConfigurationError that names the missing."""
    growth: Callable[[], int | None]
    """Returns with how many workers there is room to go on, if these are more than now; else None."""
    shared: bool
    """Whether the cluster may lose or drain machines: not a Ray of this command alone."""


def supervise(
    name: str,
    attempt: Callable[[Monitor], None],
    done: Callable[[], bool],
    restarts: Restarts,
    say: Callable[[str], object],
) -> None:
    """Run `attempt` until `done`, at most 1 + `restarts.limit` times.

    Raise TrainingStopped after a signal, once the workers have saved; TrainingFailed, with the cause of the last
    attempt, if there were too many; and at once an error that every attempt would meet again.
    """
    failures, lost_since = 0, 0.0
    with stop_request() as stop:
        while True:
            with _monitor() as monitor:
                error, move = _run(name, attempt, monitor, stop, restarts)
                reports, step, lost = monitor.reports(), monitor.stopped_at(), _lost(monitor.nodes())
            finished = done()
            if stop.signal is not None:
                raise TrainingStopped(_stopped(name, stop.signal, finished, step), stop.signal)
            if finished:
                return
            _raise_final(reports)
            if step is not None and move is not None:
                say(f"[{name}] {move.cause}: saved after step {step}, goes on {move.how}")
                lost_since = time.monotonic()
            elif lost_since and _did_not_start(error):
                if time.monotonic() - lost_since > restarts.recovery_seconds:
                    raise TrainingFailed(_failed(name, failures, cause(error, reports, lost))) from error
            else:
                failures, lost_since = failures + 1, time.monotonic()
                reason = cause(error, reports, lost)
                if failures > restarts.limit:
                    raise _last(name, failures, reason, reports) from error
                say(f"[{name}] {reason}; restart {failures} of at most {restarts.limit}, from the last checkpoint")
            restarts.ready(restarts.recovery_seconds if restarts.shared else 0)


def cause(error: Exception | None, reports: Sequence[WorkerReport], lost: Sequence[str] = ()) -> str:
    """Return in one line why an attempt ended: a lost machine before a hung rank, a dead one, and their consequences.

    `lost`: addresses of machines that had workers.
    """
    if lost:
        return f"a machine with workers is gone, or cannot be reached: {', '.join(lost)}"
    for report in reports:
        if report.hung:
            return str(report)
    failures = _failures(error)
    for kinds, reason in REASONS:
        for rank, failure in failures.items():
            if isinstance(failure, kinds):
                return f"rank {rank} {reason}"
    if reports:
        return str(reports[0])
    if _did_not_start(error):
        return "the workers did not start in time, or died as they started"
    if isinstance(error, RayActorError):
        return "Ray Train's controller died"
    if error is None:
        return "the workers ended without a result"
    inner = error.controller_failure if isinstance(error, ControllerError) else error
    first = next(iter(str(inner).strip().splitlines()), "")
    return f"{type(inner).__name__}: {first}"


@contextmanager
def _monitor() -> Iterator[Monitor]:
    monitor = Monitor.start()
    try:
        yield monitor
    finally:
        monitor.end()


def _run(
    name: str, attempt: Callable[[Monitor], None], monitor: Monitor, stop: StopRequest, restarts: Restarts
) -> tuple[Exception | None, "_Move | None"]:
    """Run one attempt in a thread. Return its error, and for which move it was asked to save, if for any.

    Signals make the same request. Not in this thread: Ray Train's handler of SIGINT would abort the attempt without a
    checkpoint.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            attempt(monitor)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="attempt", daemon=True)
    thread.start()
    announced, growth = False, _Growth(restarts.growth)
    move: _Move | None = None
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if stop.signal is not None and not announced:
            announced = True
            print(
                f"[{name}] {_name(stop.signal)}: saves after this step and stops; a second one ends it now", flush=True
            )
        if restarts.shared and move is None:
            move = _Move("a machine is drained", "without it") if _drained(monitor.nodes()) else growth.move()
        if stop.signal is not None or move is not None:
            monitor.request_stop()
    return errors[0] if errors else None, move


@dataclass(frozen=True)
class _Move:
    """Why the workers save and begin again, and how."""

    cause: str
    how: str


class _Growth:
    """Watch over the room for more workers, which must last."""

    def __init__(self, growth: Callable[[], int | None]) -> None:
        self._growth, self._since, self._asked = growth, math.inf, -math.inf

    def move(self) -> _Move | None:
        """Return the move to more workers; None while there is none."""
        now = time.monotonic()
        if now - self._asked < GROWTH_SECONDS / 10:
            return None
        self._asked, size = now, self._growth()
        self._since = math.inf if size is None else min(self._since, now)
        lasted = now - self._since >= GROWTH_SECONDS
        return _Move(f"there is room for {size} workers", "with them") if lasted else None


def _drained(nodes: set[str]) -> bool:
    return any(node in nodes for node in cluster_state.get_draining_nodes() or {})


def _lost(nodes: set[str]) -> list[str]:
    """Return the addresses of those of the nodes that the cluster has given up."""
    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in nodes and not node["Alive"])


def _raise_final(reports: Sequence[WorkerReport]) -> None:
    for report in reports:
        if report.error is not None:
            raise report.error


def _last(name: str, failures: int, reason: str, reports: Sequence[WorkerReport]) -> Exception:
    for report in reports:
        if report.detail:
            print(redacted_text(f"\nrank {report.rank}:\n{report.detail}"), file=sys.stderr, flush=True)
    return TrainingFailed(_failed(name, failures, reason))


def _failed(name: str, failures: int, reason: str) -> str:
    times = "once" if failures == 1 else f"{failures} times"
    return f"{name} failed {times}, at last because {reason}; the same command resumes from the last checkpoint"


def _stopped(name: str, number: int, finished: bool, step: int | None) -> str:
    again = "the same command goes on from there"
    if finished:
        return f"{name} has ended its training on {_name(number)}; {again}"
    if step is None:
        return f"{name} ended on {_name(number)} without a new checkpoint; the same command resumes from the last one"
    return f"{name} was stopped by {_name(number)} and saved after step {step}; {again}"


def _name(number: int) -> str:
    return signal.Signals(number).name


def _failures(error: Exception | None) -> dict[int, Exception]:
    """Return what ended each failed rank; Ray Train wraps what it gets for a process that is no more."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    return {
        rank: failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure
        for rank, failure in sorted(failures.items())
    }


def _did_not_start(error: Exception | None) -> bool:
    return isinstance(error, ControllerError) and type(error.controller_failure).__name__ in STARTING
