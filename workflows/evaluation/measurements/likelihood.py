"""Likelihood measurements: sampler bounds, the numbers that belong to no sampler, and the published estimator."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from edlm import equations
from edlm.interfaces import AbstractEnergy, AnyEnergy, NormalisedEnergy, proposal_of
from edlm.likelihood.bounds import autoregressive_nll, nelbo, sampler_bound
from edlm.likelihood.carry_over_autoregressive import carry_over_estimate
from edlm.likelihood.estimate import Estimate, difference
from edlm.likelihood.exact_order import FIXED_ORDER, has_exact_likelihood
from edlm.likelihood.log_partition import log_partition
from edlm.likelihood.paper_estimator import paper_estimate
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import AbstractSchedule
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    Row,
    autoregressive,
    distribution_of,
    energy_inputs,
    energy_model,
    models,
    per_token,
    validation,
)
from workflows.row_names import PLAIN

WHOLE_SEQUENCE_COST = 8  # denoiser passes that one call of a whole-sequence energy costs, roughly
SPECULATIVE, FITTED, ANOTHER_DISTRIBUTION = "speculative", "fitted steps", "another distribution"
EXACT_LIKELIHOOD = "exact likelihood"


def name_of(energy: str, sampler: Sampler) -> str:
    """Return the value of column `energy`: its name, and what distinguishes the sampler from the usual one."""
    rule = sampler.unmasking.name
    suffixes = (
        (SPECULATIVE, sampler.speculative),
        (FITTED, sampler.grid is not None),
        (f"{rule} ({ANOTHER_DISTRIBUTION})", bool(rule)),
        (EXACT_LIKELIHOOD, has_exact_likelihood(sampler)),
    )
    return ", ".join([energy, *(words for words, applies in suffixes if applies)])


def sampler_columns(energy: str, sampler: Sampler) -> Row:
    """Return the columns that identify the sampler of a row."""
    return {
        "energy": name_of(energy, sampler),
        # Speculative decoding draws from the same distribution, and has the bound of that.
        "distribution": name_of(energy, replace(sampler, speculative=False)),
        "steps": sampler.steps,
        "candidates": sampler.candidates,
        "window_from": sampler.window[0],
        "window_to": sampler.window[1],
        "energy_temperature": sampler.energy_temperature,
    }


def sampler_label(energy: str, sampler: Sampler) -> str:
    """Describe the same in words."""
    low, high = sampler.window
    k = sampler.candidates or "exact"
    name = name_of(energy, sampler)
    return (
        f"{name}, T = {sampler.steps}, k = {k}, window [{low:g}, {high:g}], temperature {sampler.energy_temperature:g}"
    )


def expected_moves(sampler: Sampler, schedule: AbstractSchedule, length: int) -> Float64[Tensor, " i"]:
    """Return P(the step from t_i unmasks anything), i = 1 to T, for a text drawn from a fully masked canvas.

    Each position independently is masked at t with probability 1 - alpha_t and then unmasked with the sampler's share;
    with fixed counts, the probability is 0 or 1.
    """
    grid = sampler.times()
    if sampler.unmasking == FIXED_ORDER:
        return (fixed_counts(sampler, schedule, length) > 0).double()
    share, _ = sampler.unmasking.shares(grid[1:], grid[:-1], schedule)
    return 1 - (1 - (1 - schedule.alpha(grid[1:])) * share) ** length


def expected_choices(
    sampler: Sampler, schedule: AbstractSchedule, length: int, energy: AnyEnergy
) -> Float64[Tensor, " i"]:
    """Return P(the step from t_i calls the energy), for the same texts as `expected_moves`.

    A single new token in a group needs no joint distribution (`Sampler.chooses`).
    """
    inside = sampler.in_window(sampler.times()[1:]) & (sampler.candidates != 1)
    if sampler.candidates == EXACT or proposal_of(energy) is not None:
        return inside * expected_moves(sampler, schedule, length)
    size = length if energy.block is None else energy.block
    groups = (*[size] * (length // size), *([length % size] if length % size else []))
    if sampler.unmasking == FIXED_ORDER:
        pairs = [_chance_of_pair(count, groups) for count in fixed_counts(sampler, schedule, length).tolist()]
        return inside * torch.tensor(pairs, dtype=torch.float64)
    share = expected_moves(sampler, schedule, 1)
    no_pair = torch.ones_like(share)  # P(no group has two new tokens): groups are independent
    for positions in groups:
        no_pair *= (1 - share) ** positions + positions * share * (1 - share) ** (positions - 1)
    return inside * (1 - no_pair)


def fixed_counts(sampler: Sampler, schedule: AbstractSchedule, length: int) -> Int64[Tensor, " i"]:
    """Return how many positions of an empty canvas the step from t_i unmasks with fixed counts, i = 1 to T."""
    times = sampler.times()
    masked = equations.masked_on_average(torch.full(times.shape, length), schedule.alpha(times))
    return masked.diff()


def _chance_of_pair(count: int, groups: Sequence[int]) -> float:
    """Return P(two of `count` positions are in one group), where every choice of positions is equally likely.

    Which positions are the most certain depends on the text, so for blocks this is an estimate.
    """
    apart = [1] + [0] * count  # ways to choose n positions from n groups, by n
    for size in groups:
        apart = [ways + size * (apart[n - 1] if n else 0) for n, ways in enumerate(apart)]
    return 1 - apart[count] / math.comb(sum(groups), count)


def expected_calls(sampler: Sampler, schedule: AbstractSchedule, length: int, energy: AnyEnergy | None) -> Row:
    """Return network passes per text from a fully masked canvas; a step that unmasks nothing has none."""
    moves = expected_moves(sampler, schedule, length)
    choices = 0.0 if energy is None else expected_choices(sampler, schedule, length, energy).sum().item()
    return {"denoiser_calls": moves.sum().item(), "energy_calls": max(sampler.candidates, 1) * choices}


def bound_columns(estimate: Estimate, length: int) -> Row:
    """Return nats per token, and those of every sequence, so that any two rows can be paired."""
    return {
        "bound_nats_per_token": estimate.mean / length,
        "standard_error": estimate.standard_error / length,
        "by_sequence": (estimate.values / length).tolist(),
    }


@dataclass(frozen=True, kw_only=True)
class Bound(AbstractMeasurement):
    """The T-step bound of one sampler."""

    energy: str
    sampler: Sampler
    repeats: int = 1
    """Independent sets of candidates inside the logarithm, initially."""
    tightness: float | None = None
    """Nats per token: repeats are doubled until a doubling gains less; None: never."""

    @property
    def label(self) -> str:
        return f"bound of {sampler_label(self.energy, self.sampler)}"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", *energy_inputs(self.subject, self.energy))

    @property
    def cost(self) -> float:
        return self.sampler.steps * max(self.sampler.candidates, 4) * self.repeats

    def find(self) -> MeasuredRows:
        denoiser, energy = models(self.subject, self.energy)
        x0 = validation(self.subject)

        def bound(repeats: int) -> Estimate:
            seed = self.subject.seed
            return sampler_bound(x0, denoiser.network, energy, denoiser.schedule, self.sampler, seed, 1, repeats)

        estimate, repeats, gained = tightened(bound, self.repeats, self.tightness, denoiser.length)
        row = {
            **sampler_columns(self.energy, self.sampler),
            "whole_sequence": None if energy is None else energy.whole_sequence,
            "block": None if energy is None else energy.block,
            "repeats": repeats,
            "last_doubling_gained": gained,
            **bound_columns(estimate, denoiser.length),
            **expected_calls(self.sampler, denoiser.schedule, denoiser.length, energy),
            **self.common(),
        }
        return MeasuredRows({"bounds": [row]})


@dataclass(frozen=True, kw_only=True)
class Reference(AbstractMeasurement):
    """Numbers that belong to no sampler: NELBO, and if known autoregressive likelihood and the source's entropy."""

    draws: int

    @property
    def label(self) -> str:
        return "NELBO and autoregressive likelihood"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", "denoiser", *(["autoregressive"] if self.subject.autoregressive is not None else []))

    @property
    def cost(self) -> float:
        return self.draws

    def find(self) -> MeasuredRows:
        x0, (denoiser, _) = validation(self.subject), models(self.subject, PLAIN)
        estimates = {
            "denoiser_nelbo": nelbo(x0, denoiser.network, denoiser.schedule, self.subject.seed, self.draws),
        }
        if self.subject.autoregressive is not None:
            model = autoregressive(self.subject.autoregressive)
            estimates["autoregressive_nll"] = autoregressive_nll(x0, model)
        if self.subject.source is not None:  # on the same sequences, so that differences to it are paired
            estimates["entropy"] = Estimate(-distribution_of(self.subject).log_p(x0).cpu(), 1)
        rows = [
            {"name": name, **per_token(estimate, denoiser.length), **self.common()}
            | {"by_sequence": (estimate.values / denoiser.length).tolist()}
            for name, estimate in estimates.items()
        ]
        return MeasuredRows({"reference": rows})


@dataclass(frozen=True, kw_only=True)
class Paper(AbstractMeasurement):
    """The published estimator of one whole-sequence energy, which is not a bound."""

    energy: str
    draws: int
    log_partition_draws: int

    @property
    def label(self) -> str:
        return f"the paper's estimator of {self.energy}"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", "denoiser", self.energy)

    @property
    def cost(self) -> float:
        return self.draws * self.log_partition_draws * WHOLE_SEQUENCE_COST

    def find(self) -> MeasuredRows:
        x0, model = validation(self.subject), energy_model(self.subject, self.energy)
        network, energy, schedule, seed = model.denoiser, model.energy, model.schedule, self.subject.seed
        estimated = f"log Z from {self.log_partition_draws} draws"
        n = self.log_partition_draws
        estimates = {estimated: paper_estimate(x0, network, energy, schedule, seed, self.draws, n)}
        if isinstance(energy, NormalisedEnergy):
            draws = self.draws * self.log_partition_draws  # a known log Z costs no draws
            estimates["log Z = 0, as it is"] = paper_estimate(x0, network, energy, schedule, seed, draws, None)
        if isinstance(energy, AbstractEnergy) and energy.additive:
            estimates["masks averaged in closed form"] = carry_over_estimate(x0, network, energy, schedule)
        rows = [
            {"energy": self.energy, "method": method, "log_partition_estimated": method == estimated}
            | {**per_token(estimate, x0.shape[1]), **self.common(), "perplexity": math.exp(estimate.mean / x0.shape[1])}
            for method, estimate in estimates.items()
        ]
        return MeasuredRows({"paper": rows})


@dataclass(frozen=True, kw_only=True)
class Partition(AbstractMeasurement):
    """Both ends of a bracket of log Z of one energy, from n draws."""

    energy: str
    draws: int
    """Noise samples per sequence."""
    log_partition_draws: int
    """n."""

    @property
    def label(self) -> str:
        return f"log Z of {self.energy} from {self.log_partition_draws} draws"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", "denoiser", self.energy)

    @property
    def cost(self) -> float:
        return self.draws * self.log_partition_draws * WHOLE_SEQUENCE_COST

    def find(self) -> MeasuredRows:
        x0, model = validation(self.subject), energy_model(self.subject, self.energy)
        ends = log_partition(x0, model, self.subject.seed, self.draws, self.log_partition_draws)
        row: Row = {"energy": self.energy, "draws": self.log_partition_draws}
        for name, end in zip(("low", "high"), ends, strict=True):
            row[f"{name}_nats_per_token"] = end.mean / x0.shape[1]
            row[f"{name}_standard_error"] = end.standard_error / x0.shape[1]
        return MeasuredRows({"partition": [row | self.common()]})


MOST_REPEATS = 64


def tightened(
    bound: Callable[[int], Estimate], repeats: int, tightness: float | None, length: int
) -> tuple[Estimate, int, float | None]:
    """Return (bound, its repeats, gain of the last doubling in nats per token; None without a doubling).

    The bound falls as repeats grow. With `tightness` they are doubled until a doubling gains less, which then measures
    the remaining gap, or until there are 64.
    """
    estimate, gained = bound(repeats), None
    while tightness is not None and repeats < MOST_REPEATS and (gained is None or gained >= tightness):
        better = bound(2 * repeats)
        gained = difference(estimate, better).mean / length
        estimate, repeats = better, 2 * repeats
    return estimate, repeats, gained
