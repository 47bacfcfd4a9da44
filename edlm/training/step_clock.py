"""Seconds of a training step by part: data, forward, backward and update, without waiting for a device.

Communication is within the part that it belongs to: gradients are reduced in the backward pass, weights gathered in the
update (and under ZeRO-3 in the passes). Under ZeRO-3 it overlaps with them, and DeepSpeed's own clock of collectives
waits for each.
"""

import functools
import time
from typing import Literal

import torch
from torch import nn

Part = Literal["data", "forward", "backward", "update"]
PARTS: tuple[Part, ...] = ("data", "forward", "backward", "update")


class StepClock:
    """Clock of the parts of steps; the loop begins each, and the objective's forward pass ends itself."""

    def __init__(self, objective: nn.Module) -> None:
        self._marks: list[tuple[Part | None, float | torch.cuda.Event]] = []
        self._objective = objective
        objective.register_forward_hook(lambda *_: self._end_forward())

    @functools.cached_property
    def _cuda(self) -> bool:
        return any(parameter.is_cuda for parameter in self._objective.parameters())  # once an engine has moved them

    def begin(self, part: Part | None) -> None:
        """Begin a part, which ends the one before; None: only end it."""
        if not self._cuda:
            self._marks.append((part, time.perf_counter()))
            return
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append((part, mark))

    def taken(self, steps: int) -> dict[str, float]:
        """Return the mean seconds by part of the steps since the last call, which a device has completed."""
        total = dict.fromkeys(PARTS, 0.0)
        for (part, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                total[part] += _seconds(start, end)
        self._marks = []
        return {f"seconds_{part}": seconds / max(1, steps) for part, seconds in total.items()}

    def _end_forward(self) -> None:
        if self._marks and self._marks[-1][0] == "forward":  # not in a validation
            self.begin("backward")


def _seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return start.elapsed_time(end) / 1000
    assert isinstance(end, float)
    return end - start
