"""Reporter of rank 0: metrics of every step to the tracker, of some steps to the console."""

import logging
import resource
from collections.abc import Callable, Mapping
from types import TracebackType

import torch

from cluster.runtime.progress import Speaker
from edlm.data.batches import Rows
from edlm.training.device_usage import DeviceUsage
from edlm.training.interfaces import Engine, Tracker
from edlm.training.progress import ProgressLines
from edlm.training.settings import Training
from edlm.training.step_profiler import StepProfiler

log = logging.getLogger(__name__)


class Reporter:
    """Reporter of one training; as a context manager it closes its tracker at the end."""

    def __init__(
        self, name: str, training: Training, length: int, tracker: Tracker, say: Speaker, usage: DeviceUsage
    ) -> None:
        self._tracker, self._lines = tracker, ProgressLines(name, training, length, say)
        self._tokens, self._usage = training.batch * length, usage
        window = training.profile
        self._profiler = None if window is None else StepProfiler(window, tracker.text)

    def profiled(self, rows: Callable[[int, int, int], Rows]) -> Callable[[int, int, int], Rows]:
        """Return rows that tell the profiler, if there is one, when a step begins."""
        if (profiler := self._profiler) is None:
            return rows

        def announced(step: int, start: int, stop: int) -> Rows:
            profiler.before(step)
            return rows(step, start, stop)

        return announced

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        seconds = metrics["seconds_per_step"]
        measured = {"tokens_per_second": self._tokens / seconds, "memory_mib": _memory_mib(), **self._usage.of(seconds)}
        self._tracker.log(step, {**metrics, **measured})
        self._lines.log(step, metrics)

    def secure(self) -> None:
        self._tracker.secure()

    def stop(self, engine: Engine) -> None:
        self._lines.stop(engine)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the tracker; after an error, what a full disk keeps from that is said, and does not hide the error."""
        try:
            if self._profiler is not None:
                self._profiler.close()
            self._tracker.close()
        except OSError as failure:
            if error is None:
                raise
            log.warning("metrics since the last checkpoint are not kept: %s", failure)


def _memory_mib() -> float:
    """Return the peak memory of this process: GPU memory if it has a GPU, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
