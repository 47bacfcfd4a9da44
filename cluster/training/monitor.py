"""Monitor of one attempt of a training: the command asks through it for a stop, workers report through it."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.runtime.placement import on_this_machine
from cluster.training.outcomes import WorkerReport
from cluster.training.standing import Standing

POLL_SECONDS = 0.5
ANSWER_SECONDS = 10.0


@ray.remote(num_cpus=0)
class _Board:
    def __init__(self) -> None:
        self._stop, self._stopped = False, -1
        self._nodes: dict[int, str] = {}
        self._reports: list[WorkerReport] = []
        self._standings: dict[int, tuple[float, Standing]] = {}

    def request_stop(self) -> None:
        self._stop = True

    def stop_requested(self) -> bool:
        return self._stop

    def join(self, rank: int, node: str) -> None:
        self._nodes[rank] = node

    def nodes(self) -> dict[int, str]:
        return self._nodes

    def report(self, report: WorkerReport) -> None:
        self._reports.append(report)

    def reports(self) -> list[WorkerReport]:
        return self._reports

    def stand(self, rank: int, standing: Standing) -> None:
        self._standings[rank] = time.monotonic(), standing

    def leave(self, rank: int) -> None:
        self._standings.pop(rank, None)

    def standings(self) -> dict[int, Standing]:
        now = time.monotonic()
        return {rank: replace(one, unheard=now - heard) for rank, (heard, one) in self._standings.items()}

    def stopped(self, step: int) -> None:
        self._stopped = step

    def step(self) -> int:
        return self._stopped


class Monitor:
    """Handle of the monitor, for the command and, pickled, for its workers.

    A monitor that does not answer is as one with nothing to say: training never fails because of it. Ray starts one
    whose process died again, empty.
    """

    def __init__(self, board) -> None:
        self._board = board

    @classmethod
    def start(cls) -> "Monitor":
        """Start a monitor on the machine of this process."""
        return cls(_Board.options(max_restarts=-1, scheduling_strategy=on_this_machine()).remote())

    def end(self) -> None:
        ray.kill(self._board)

    def request_stop(self) -> None:
        """Ask the workers to save and stop; may be repeated."""
        self._ask("request_stop")

    def join(self, rank: int) -> None:
        """Say on which node this rank runs."""
        self._ask("join", rank, ray.get_runtime_context().get_node_id())

    def nodes(self) -> set[str]:
        """Return the nodes that workers run on."""
        return set((self._ask("nodes") or {}).values())

    def report(self, report: WorkerReport) -> None:
        """Deliver a report before the worker ends."""
        self._ask("report", report)

    def reports(self) -> list[WorkerReport]:
        """Return the reports in the order in which they arrived."""
        return self._ask("reports") or []

    def stand(self, rank: int, standing: Standing) -> None:
        """Say, without waiting, where a rank stands."""
        with suppress(RayError):
            self._board.stand.remote(rank, standing)

    def leave(self, rank: int) -> None:
        """Say, without waiting, that a rank says no more where it stands."""
        with suppress(RayError):
            self._board.leave.remote(rank)

    def standings(self) -> dict[int, Standing]:
        """Return where every rank stands that has said so."""
        return self._ask("standings") or {}

    def stopped(self, step: int) -> None:
        """Say that all ranks have saved and stopped after `step` steps."""
        self._ask("stopped", step)

    def stopped_at(self) -> int | None:
        """Return after which step the workers stopped on request; None if they did not."""
        step = self._ask("step")
        return None if step is None or step < 0 else step

    def _ask(self, method: str, *arguments) -> Any:
        try:
            return ray.get(getattr(self._board, method).remote(*arguments), timeout=ANSWER_SECONDS)
        except RayError:
            return None

    def stop_poll(self) -> "StopPoll":
        """Return a function that says, without waiting, whether a stop was requested."""
        return StopPoll(self._board)


@dataclass(frozen=True)
class MonitoredRank:
    """A rank's side of the monitor: what its watchdog says of it, and hears of the other ranks."""

    monitor: Monitor
    rank: int
    where: str
    """Its machine and process."""

    def stand(self, collectives: int, silent: float, waits: bool) -> None:
        self.monitor.stand(self.rank, Standing(self.where, collectives, silent, waits))

    def leave(self) -> None:
        self.monitor.leave(self.rank)

    def others(self) -> Mapping[int, Standing]:
        return {rank: standing for rank, standing in self.monitor.standings().items() if rank != self.rank}

    def hangs(self, cause: str, stack: str) -> None:
        self.monitor.report(WorkerReport(self.rank, self.where, cause, stack, hung=True))

    def is_stopped(self, rank: int, standing: Standing, cause: str) -> None:
        """Report another rank, which cannot do it."""
        self.monitor.report(WorkerReport(rank, standing.where, cause, hung=True))


class StopPoll:
    """Whether a stop was requested, asked in the background at most every `POLL_SECONDS`."""

    def __init__(self, board) -> None:
        self._board, self._answer, self._asked, self._stop = board, None, 0.0, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._answer is None and now - self._asked >= POLL_SECONDS:
            self._answer, self._asked = self._board.stop_requested.remote(), now
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(RayError):  # then it is asked again
                self._stop = self._stop or bool(ray.get(self._answer))
            self._answer = None
        return self._stop
