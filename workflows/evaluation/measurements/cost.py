"""Cost measurement: the seconds and the network calls of one sampler, with nothing else running."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from edlm.rng import Purpose, seeds
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult
from workflows.evaluation.measurements.likelihood import sampler_columns, sampler_label
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    Row,
    autoregressive,
    energy_inputs,
    models,
)
from workflows.row_names import AUTOREGRESSIVE, PLAIN

ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Cost(AbstractMeasurement):
    """Median of three rounds of `texts` texts at once, after a warm-up round that is not counted."""

    energy: str
    sampler: Sampler
    texts: int

    @property
    def label(self) -> str:
        return f"cost of {sampler_label(self.energy, self.sampler)}"

    @property
    def inputs(self) -> tuple[str, ...]:
        if self.energy == AUTOREGRESSIVE:
            return (AUTOREGRESSIVE, "denoiser")
        return energy_inputs(self.subject, self.energy)

    @property
    def cost(self) -> float:
        return self.sampler.steps * max(self.sampler.candidates, 4)

    def find(self) -> MeasuredRows:
        columns, (spent, steps) = sampler_columns(self.energy, self.sampler), timed(self._draw, self.texts)
        accepted = _accepted(steps) if self.sampler.speculative else float("nan")
        return MeasuredRows({"cost": [{**columns, **spent, "accepted_per_call": accepted, **self.common()}]})

    def _draw(self, steps: list[StepResult]) -> None:
        rows = seeds(self.subject.seed, 0, torch.arange(self.texts), Purpose.ROWS)
        if self.energy == AUTOREGRESSIVE:
            autoregressive(self.subject.uri(AUTOREGRESSIVE)).draw(rows, models(self.subject, PLAIN)[0].length)
            return
        denoiser, energy = models(self.subject, self.energy)
        canvas = torch.full((self.texts, denoiser.length), denoiser.network.mask)
        self.sampler.sample(canvas, denoiser.network, energy, denoiser.schedule, rows, on_step=steps.append)


def timed(draw: Callable[[list[StepResult]], object], texts: int) -> tuple[Row, list[StepResult]]:
    """Return the cost columns of drawing `texts` texts at once, and the steps of the last round."""
    spent, steps = [], []
    for _ in range(1 + ROUNDS):
        steps = []
        started = time.perf_counter()
        draw(steps)
        spent.append(time.perf_counter() - started)
    per_text = [seconds / texts for seconds in spent[1:]]
    columns = {
        "seconds_per_text": statistics.median(per_text),
        "seconds_least": min(per_text),
        "seconds_most": max(per_text),
        "texts_at_once": texts,
        "denoiser_calls": _calls([step.denoiser_calls for step in steps]),
        "energy_calls": _calls([step.energy_calls for step in steps]),
    }
    return columns, steps


def _accepted(steps: list[StepResult]) -> float:
    """Return the tokens kept from speculative drafts, per verifying pass."""
    return sum(step.accepted.sum().item() for step in steps) / sum(step.energy_calls.sum().item() for step in steps)


def _calls(by_step: list[torch.Tensor]) -> float:
    """Return the passes per text, over all steps."""
    return torch.stack(by_step).sum(dim=0).double().mean().item() if by_step else 0.0
