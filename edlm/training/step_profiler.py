"""Profile of some steps of a training, by torch.profiler."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from edlm.training.settings import ProfileWindow

TRACE, OPERATORS = "profile.json", "profile.txt"
ROWS = 40  # of the table of operators


class StepProfiler:
    """Profiler of the steps of a window; `keep` receives the name and the content of each file of the result.

    A training that resumes within the window, or after it, is not profiled.
    """

    def __init__(self, window: ProfileWindow, keep: Callable[[str, str], None]) -> None:
        self._window, self._keep = window, keep
        self._running: profile | None = None

    def before(self, step: int) -> None:
        """Note that a step begins; called once or more per step."""
        if step == self._window.first and self._running is None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._running = profile(activities=activities)
            self._running.start()
        elif step >= self._window.first + self._window.steps:
            self.close()

    def close(self) -> None:
        """End a profile that runs, and hand it over."""
        if self._running is None:
            return
        running, self._running = self._running, None
        running.stop()
        with tempfile.TemporaryDirectory() as folder:
            running.export_chrome_trace(str(Path(folder, TRACE)))
            self._keep(TRACE, Path(folder, TRACE).read_text(encoding="utf-8"))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        self._keep(OPERATORS, running.key_averages().table(sort_by=order, row_limit=ROWS))
