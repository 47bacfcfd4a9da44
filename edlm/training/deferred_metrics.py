"""Metrics of training steps that stay on the device until those of several steps are gathered together.

So a step waits for nothing, and the device never runs dry. A step that is not finite is found late, but named right.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from edlm.device_copies import fetched
from edlm.training.interfaces import Engine, NonFiniteLoss

QUARTERS = 4  # observations are averaged per quarter of t


@dataclass(frozen=True)
class _Step:
    step: int
    learning_rate: float
    numbers: Tensor
    """Loss of this rank and gradient norm, float64 [2]."""
    observed: dict[str, Tensor]
    """Observations of this rank's rows, float64 [rows]."""


class DeferredMetrics:
    """Steps whose metrics are not known yet. All ranks call the methods after the same steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._steps, self._since = engine, list[_Step](), 0.0

    def begin(self) -> None:
        """Note the time if no step is pending."""
        if not self._steps:
            self._since = time.perf_counter()

    def add(
        self, step: int, learning_rate: float, loss: Tensor, norm: Tensor, observed: list[dict[str, Tensor]]
    ) -> None:
        """Add a step: loss and gradient norm of this rank, and the observations of its micro-steps."""
        numbers = torch.stack([loss.double(), norm.to(loss.device).double()])
        joined = {name: torch.cat([micro[name] for micro in observed]).double() for name in observed[0]}
        self._steps.append(_Step(step, learning_rate, numbers, joined))

    def gathered(self) -> tuple[list[tuple[int, dict[str, float]]], NonFiniteLoss | None]:
        """Return the metrics of the pending steps, in order: means over the global batch, and mean seconds.

        They end before the first step whose loss or gradient is not finite, whose error is returned, on every rank
        alike.
        """
        steps, engine = self._steps, self._engine
        self._steps = []
        if not steps:
            return [], None
        numbers = engine.gather(torch.stack([one.numbers for one in steps]))
        names = list(steps[0].observed)
        observed = [engine.gather(torch.stack([one.observed[name] for one in steps])) for name in names]
        numbers, *values = fetched([numbers, *observed])
        seconds = (time.perf_counter() - self._since) / len(steps)
        failures = [
            (i, failure)
            for i, one in enumerate(steps)
            for by_rank, what in zip(numbers[:, i].unbind(dim=1), ("the loss", "the gradient's norm"), strict=True)
            if (failure := not_finite(by_rank[:, None], one.step, what)) is not None
        ]
        end, failure = failures[0] if failures else (len(steps), None)
        metrics = [
            (
                one.step,
                {
                    "loss_nats_per_token": numbers[:, i, 0].float().mean().item(),
                    "learning_rate": one.learning_rate,
                    "gradient_norm": numbers[engine.rank, i, 1].item(),
                    **_by_quarter(dict(zip(names, (value[:, i].flatten() for value in values), strict=True))),
                    "seconds_per_step": seconds,
                },
            )
            for i, one in enumerate(steps[:end])
        ]
        return metrics, failure


def not_finite(by_rank: Tensor, step: int, what: str) -> NonFiniteLoss | None:
    """Return the error of the first rank [world_size, n] with a number that is not finite; None if there is none."""
    failed = torch.nonzero(~by_rank.isfinite())
    return NonFiniteLoss(step, int(failed[0, 0]), what) if len(failed) else None


def _by_quarter(observed: dict[str, Tensor]) -> dict[str, float]:
    """Return means of the observations, and per quarter of t if the rows have a time."""
    t = observed.pop("t", None)
    metrics = {}
    for name, values in observed.items():
        metrics[name] = values.mean().item()
        if t is None:
            continue
        quarter = (t * QUARTERS).long().clamp(max=QUARTERS - 1)
        for i in range(QUARTERS):
            if bool((quarter == i).any()):
                label = f"{name}/t_{i / QUARTERS:.2f}_{(i + 1) / QUARTERS:.2f}"
                metrics[label] = values[quarter == i].mean().item()
    return metrics
