"""Seconds of a training step by part: data, forward, backward and update, without waiting for a device.

Communication is no part beside these but within them: gradients are reduced in the backward pass, weights gathered in
the update (and under ZeRO-3 in the passes). Its seconds are measured as well, and not added to the parts. On a
processor they are those for which a rank waits in a collective: what goes on beside computation takes none. On CUDA
they are those for which a stream stands still for collectives; under ZeRO-3 the streams are DeepSpeed's own, which
compute nothing, so that there the seconds may overlap with computation.
"""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

Part = Literal["data", "forward", "backward", "update"]
PARTS: tuple[Part, ...] = ("data", "forward", "backward", "update")
METRICS = tuple(f"seconds_{name}" for name in (*PARTS, "communication"))
Mark = float | torch.cuda.Event


class StepClock:
    """Clock of the parts of steps; the loop begins each, and the objective's forward pass ends itself."""

    def __init__(self, objective: nn.Module) -> None:
        self._marks: list[tuple[Part | None, Mark]] = []
        self._communication: list[tuple[Mark, Mark]] = []
        self._objective = objective
        objective.register_forward_hook(lambda *_: self._end_forward())

    @functools.cached_property
    def _cuda(self) -> bool:
        return any(parameter.is_cuda for parameter in self._objective.parameters())  # once an engine has moved them

    def begin(self, part: Part | None) -> None:
        """Begin a part, which ends the one before; None: only end it."""
        self._marks.append((part, self._mark()))

    @contextmanager
    def communication(self) -> Iterator[None]:
        """Count what is within, in a part of a step, as communication; on CUDA, what the current stream does of it."""
        if not self._marks or self._marks[-1][0] is None:  # in a validation, or a checkpoint
            yield
            return
        start = self._mark()
        yield
        self._communication.append((start, self._mark()))

    def taken(self, steps: int) -> dict[str, float]:
        """Return the mean seconds by part of the steps since the last call, which a device has completed."""
        total = dict.fromkeys(METRICS, 0.0)
        for (part, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                total[f"seconds_{part}"] += _seconds(start, end)
        total["seconds_communication"] = sum(_seconds(start, end) for start, end in self._communication)
        self._marks, self._communication = [], []
        return {name: seconds / max(1, steps) for name, seconds in total.items()}

    def _mark(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def _end_forward(self) -> None:
        if self._marks and self._marks[-1][0] == "forward":  # not in a validation
            self.begin("backward")


def _seconds(start: Mark, end: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()  # a stream of DeepSpeed's own may be behind
        return start.elapsed_time(end) / 1000
    assert isinstance(end, float)
    return end - start
