"""Adaptive-effort measurement: gain and time of every choice at every step, and the best plans within budgets.

Gains are measured on training sequences, plans on validation sequences. It runs alone, because it times steps.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.checkpoints.networks import OpenDenoiser
from edlm.data.batches import whole
from edlm.data.stored_split import open_split
from edlm.evaluation.judge_models import JudgeConfig
from edlm.interfaces import AnyEnergy
from edlm.likelihood.estimate import difference
from edlm.planning.compute_budget import PLAIN as PLAIN_STEP
from edlm.planning.compute_budget import PlannedSampler, StepChoice, best_plan, planned_bound, step_nats
from edlm.rng import Purpose, seeds
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult
from edlm.schedule import AbstractSchedule
from workflows.evaluation.measurements.cost import ROUNDS, timed
from workflows.evaluation.measurements.likelihood import (
    bound_columns,
    expected_choices,
    expected_moves,
    sampler_columns,
)
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    Row,
    energy_inputs,
    models,
    validation,
)
from workflows.evaluation.measurements.quality import AbstractTexts, is_trained_here
from workflows.row_names import PLAIN

FITTED_ON = 64  # training sequences
FITTED = "train"
ADAPTIVE = "adaptive effort"  # prefix of its names in the column `energy`


@dataclass(frozen=True, kw_only=True)
class AdaptiveEffort(AbstractMeasurement):
    """The plans for one number of steps: their bounds, texts and seconds."""

    steps: int
    choices: tuple[StepChoice, ...]
    """Choices of each step, besides plain diffusion."""
    budgets: tuple[float, ...]
    """As multiples of the seconds of plain diffusion in as many steps."""
    timed_texts: int
    """Texts drawn at once when steps are timed."""
    judge: JudgeConfig | None
    """None: texts are not judged."""
    count: int
    token_temperatures: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"adaptive effort, T = {self.steps}"

    @property
    def inputs(self) -> tuple[str, ...]:
        named = [
            name for choice in self.choices if choice.energy for name in energy_inputs(self.subject, choice.energy)
        ]
        judge = ["judge"] if self.judge is not None and is_trained_here(self.judge) else []
        return tuple(dict.fromkeys(("data", "denoiser", *judge, *named)))

    @property
    def cost(self) -> float:
        return self.steps * sum(max(choice.candidates, 4) for choice in (PLAIN_STEP, *self.choices))

    def find(self) -> MeasuredRows:
        denoiser, energies = _opened(self)
        network, schedule, seed = denoiser.network, denoiser.schedule, self.subject.seed
        training = whole(open_split(self.subject.data, FITTED, FITTED_ON), denoiser.length, FITTED_ON)
        choices, sampler = (PLAIN_STEP, *self.choices), Sampler(steps=self.steps)
        plans = [(choice,) * self.steps for choice in choices]
        nats = step_nats(training, network, energies, schedule, sampler, plans, seed, draws=1).mean(dim=2)
        gains, seconds = nats[:, :1] - nats, self._seconds(denoiser, energies, plans)
        tables: dict[str, list[Row]] = {"effort": [], "bounds": [], "quality": [], "trajectory": [], "cost": []}
        for budget in self.budgets:
            chosen = best_plan(gains, seconds, budget * seconds[:, 0].sum().item())
            planned = PlannedSampler(sampler, tuple(choices[c] for c in chosen))
            index = torch.arange(self.steps), torch.tensor(chosen)
            promised = {
                "promised_gain": gains[index].sum().item() / denoiser.length,
                "planned_seconds": seconds[index].sum().item(),
            }
            for name, rows in self._judged(budget, planned, promised).items():
                tables[name] += rows
        return MeasuredRows(tables)

    def _seconds(
        self, denoiser: OpenDenoiser, energies: dict[str, AnyEnergy], plans: Sequence[tuple[StepChoice, ...]]
    ) -> Float64[Tensor, "i c"]:
        """Return the seconds per text of every step, from t = 1 on, under each plan: medians of interleaved rounds."""
        keys = seeds(self.subject.seed, 0, torch.arange(self.timed_texts), Purpose.ROWS)
        laps: list[list[list[float]]] = [[] for _ in plans]
        for _ in range(1 + ROUNDS):
            for plan, plan_laps in zip(plans, laps, strict=True):
                stamps = [time.perf_counter()]
                _drawn(PlannedSampler(Sampler(steps=self.steps), plan), denoiser, energies, keys, stamps, [])
                plan_laps.append([after - before for before, after in pairwise(stamps)])
        medians = [[statistics.median(lap) for lap in zip(*plan_laps[1:], strict=True)] for plan_laps in laps]
        return torch.tensor(medians, dtype=torch.float64).T / self.timed_texts

    def _judged(self, budget: float, planned: PlannedSampler, promised: Row) -> dict[str, list[Row]]:
        """Return the rows of one plan for every table."""
        denoiser, energies = _opened(self)
        x0, schedule, seed, length = validation(self.subject), denoiser.schedule, self.subject.seed, denoiser.length
        name = f"{ADAPTIVE}, {budget:g} times plain"
        columns = sampler_columns(name, widest(planned))
        bounds = [
            planned_bound(x0, denoiser.network, energies, schedule, item, seed, draws=1)
            for item in (PlannedSampler(planned.sampler, (PLAIN_STEP,) * self.steps), planned)
        ]
        gain = difference(*bounds)
        bound = {
            **columns, "whole_sequence": None, "block": None, "repeats": 1, "last_doubling_gained": None,
            **bound_columns(bounds[1], length), **planned_calls(planned, energies, schedule, length), **self.common(),
        }  # fmt: skip
        keys = seeds(seed, 0, torch.arange(self.timed_texts), Purpose.ROWS)
        spent, _ = timed(lambda steps: _drawn(planned, denoiser, energies, keys, [], steps), self.timed_texts)
        cost = columns | spent | {"accepted_per_call": float("nan")}
        effort = {
            **columns, "budget": budget, "plan": [_words(item) for item in planned.plan], **promised,
            "bound_nats_per_token": bounds[1].mean / length, "standard_error": bounds[1].standard_error / length,
            "gain_over_plain": gain.mean / length, "gain_standard_error": gain.standard_error / length,
            "seconds_per_text": cost["seconds_per_text"], **self.common(),
        }  # fmt: skip
        texts = {} if self.judge is None else self._texts(self.judge, name, planned)
        return {"effort": [effort], "bounds": [bound], "cost": [cost | self.common()], **texts}

    def _texts(self, judge: JudgeConfig, name: str, planned: PlannedSampler) -> dict[str, list[Row]]:
        """Return the rows of the plan's texts at every token temperature."""
        texts: dict[str, list[Row]] = {"quality": [], "trajectory": []}
        for temperature in self.token_temperatures:
            texts_of_plan = PlannedTexts(
                subject=self.subject, judge=judge, count=self.count, token_temperature=temperature, cell=self,
                name=name, planned=planned,
            ).find()  # fmt: skip
            for table, rows in texts_of_plan.rows.items():
                texts[table] += rows
        return texts


@dataclass(frozen=True, kw_only=True)
class PlannedTexts(AbstractTexts):
    """Texts of one plan; not itself in the grid, because a measurement of the grid finds the plan."""

    cell: AdaptiveEffort
    name: str
    planned: PlannedSampler

    @property
    def identity(self) -> tuple[str, Sampler]:
        return self.name, widest(self.planned)

    def draw(self) -> tuple[Int[Tensor, "b l"], list[StepResult]]:
        denoiser, energies = _opened(self.cell, self.token_temperature)
        keys = seeds(self.subject.seed, 0, torch.arange(self.count), Purpose.ROWS)
        steps: list[StepResult] = []
        return _drawn(self.planned, denoiser, energies, keys, [], steps), steps


def widest(planned: PlannedSampler) -> Sampler:
    """Return the sampler for the columns, which have room for one k: the most candidates of any step."""
    return replace(planned.sampler, candidates=max(choice.candidates for choice in planned.plan))


def planned_calls(
    planned: PlannedSampler, energies: Mapping[str, AnyEnergy], schedule: AbstractSchedule, length: int
) -> Row:
    """Return the same as `expected_calls`, each step with its own energy and k."""
    calls = 0.0
    for i, choice in zip(range(planned.sampler.steps, 0, -1), planned.plan, strict=True):
        sampler, energy = choice.sampler_of(planned.sampler), choice.energy_of(energies)
        if energy is not None:
            calls += max(choice.candidates, 1) * expected_choices(sampler, schedule, length, energy)[i - 1].item()
    return {"denoiser_calls": expected_moves(planned.sampler, schedule, length).sum().item(), "energy_calls": calls}


def _opened(cell: AdaptiveEffort, temperature: float = 1.0) -> tuple[OpenDenoiser, dict[str, AnyEnergy]]:
    energies = {}
    for name in dict.fromkeys(choice.energy for choice in cell.choices if choice.energy):
        energies[name] = models(cell.subject, name, temperature)[1]
    return models(cell.subject, PLAIN, temperature)[0], energies


def _drawn(
    planned: PlannedSampler,
    denoiser: OpenDenoiser,
    energies: dict[str, AnyEnergy],
    keys: Int[Tensor, " b"],
    stamps: list[float],
    steps: list[StepResult],
) -> Int[Tensor, "b l"]:
    """Draw a text per key from a masked canvas; append every step's time to `stamps`, its result to `steps`."""

    def passed(step: StepResult) -> None:
        stamps.append(time.perf_counter())
        steps.append(step)

    canvas = torch.full((len(keys), denoiser.length), denoiser.network.mask)
    return planned.sample(canvas, denoiser.network, energies, denoiser.schedule, keys, passed)


def _words(choice: StepChoice) -> str:
    if choice.energy is None:
        return PLAIN
    return f"{choice.energy}, k = {choice.candidates}" if choice.candidates else f"{choice.energy}, exact"
