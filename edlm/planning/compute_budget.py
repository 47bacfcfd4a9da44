"""Adaptive effort: for every step the energy and the k that gain most for their seconds, under a budget of seconds.

The bound is a sum over steps, and a step's part depends on nothing that other steps did (docs/mathematics.md 4.5). So
what each choice gains at each step can be measured on its own, and the best plan is a knapsack with one choice a step,
solved exactly by dynamic programming. A plan's law is that of its steps, and its bound the sum of theirs; only the plan
is fitted, so fit it on other sequences than those that the bound is reported for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.interfaces import AnyDenoiser, AnyEnergy
from edlm.likelihood.bounds import step_bound
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.paths import trajectory
from edlm.sampling.sampler import EXACT, Sampler, sample_in_turn
from edlm.sampling.state import StepResult
from edlm.schedule import AbstractSchedule

LEAST_TICKS, TICKS_A_STEP = 2000, 100  # that what a budget leaves is counted in
HAIR = 1e-9  # so that a whole number of ticks stays one, and a budget that is just what is taken is kept

Energies = Mapping[str, AnyEnergy]


@dataclass(frozen=True)
class StepChoice:
    """What a step does: k candidates of an energy, by its name; without one it is plain."""

    energy: str | None = None
    candidates: int = 1

    def turn(self, sampler: Sampler, energies: Energies) -> tuple[Sampler, AnyEnergy | None]:
        """The sampler and the energy of such a step. ValueError where there is no energy of that name."""
        if self.energy is not None and self.energy not in energies:
            raise ValueError(f"the plan asks for energy {self.energy!r}; there are: {', '.join(energies) or 'none'}")
        verifying = sampler.speculative and self.candidates == EXACT
        how = replace(sampler, candidates=self.candidates, speculative=verifying)
        return how, None if self.energy is None else energies[self.energy]


PLAIN = StepChoice()


@dataclass(frozen=True)
class PlannedSampler:
    """A sampler whose steps differ in effort: its grid, window, temperature and way of revealing, and a plan."""

    sampler: Sampler
    plan: tuple[StepChoice, ...]
    """From t = 1 on, one for each step."""

    def __post_init__(self) -> None:
        if len(self.plan) != self.sampler.steps:
            raise ValueError(f"a plan has one choice for each of {self.sampler.steps} steps; got {len(self.plan)}")

    def sample(
        self,
        xt: Int[Tensor, "b l"],
        denoiser: AnyDenoiser,
        energies: Energies,
        schedule: AbstractSchedule,
        seeds: Int[Tensor, " b"],
        on_step: Callable[[StepResult], None] | None = None,
    ) -> Int[Tensor, "b l"]:
        """As `Sampler.sample`."""
        turns = [choice.turn(self.sampler, energies) for choice in self.plan]
        return sample_in_turn(turns, xt, denoiser, schedule, seeds, on_step)


@torch.no_grad()
def step_nats(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    energies: Energies,
    schedule: AbstractSchedule,
    sampler: Sampler,
    plans: Sequence[Sequence[StepChoice]],
    seed: int,
    draws: int,
) -> Float64[Tensor, "i c b"]:
    """Nats of every step, from t = 1 on, under each of the `plans`, for every sequence.

    All are measured on the same paths, so that their differences are paired.
    """
    nats = torch.zeros(sampler.steps, len(plans), len(x0), dtype=torch.float64)
    for draw in range(draws):
        for i, xt, revealed in trajectory(x0, denoiser, schedule, sampler, seed, draw):
            place, t = sampler.steps - i, sampler.times()[i].item()
            for c, plan in enumerate(plans):
                how, energy = plan[place].turn(sampler, energies)
                one = step_bound(x0, xt, revealed, t, i, denoiser, energy, how, seed, draw, repeats=1)
                nats[place, c] += one.cpu()
    return nats / draws


def planned_bound(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    energies: Energies,
    schedule: AbstractSchedule,
    planned: PlannedSampler,
    seed: int,
    draws: int,
) -> Estimate:
    """The rigorous T-step bound of the planned sampler, as `edlm.likelihood.bounds.sampler_bound`; no whole drafts."""
    nats = step_nats(x0, denoiser, energies, schedule, planned.sampler, [planned.plan], seed, draws)
    return Estimate(nats.sum(dim=0)[0], draws)


def best_plan(
    gains: Float64[Tensor, "i c"], seconds: Float64[Tensor, "i c"], budget_seconds: float, ticks: int | None = None
) -> tuple[int, ...]:
    """The choice of every step whose gains have the largest sum, where the seconds have a sum within the budget.

    Only what a choice takes longer than the quickest one of its step is rounded, up to a tick: 1 / `ticks` of what the
    quickest plan leaves of the budget. So no plan exceeds the budget, the quickest one is never rounded out of it, and
    of those that keep it when so rounded none gains more. Raises ValueError where even the quickest takes longer.
    """
    ticks = ticks or max(LEAST_TICKS, TICKS_A_STEP * len(seconds))  # each step rounds: more of them need finer ticks
    least = seconds.min(dim=1, keepdim=True).values
    quickest = least.sum().item()
    if quickest > budget_seconds * (1 + HAIR):
        raise ValueError(f"the quickest plan takes {quickest:g} seconds; a budget of {budget_seconds:g} is too small")
    tick = max((budget_seconds - quickest) / ticks, 1e-300)  # nothing left: whatever takes longer is out of reach
    prices = ((seconds - least) / tick - HAIR).ceil().clamp(max=ticks + 1).long()
    most = torch.zeros(ticks + 1, dtype=torch.float64)  # by the steps so far, within each number of ticks
    chosen = []
    for price, gain in zip(prices, gains, strict=True):
        options = torch.full((len(price), ticks + 1), -math.inf, dtype=torch.float64)
        for c, taken in enumerate(price.tolist()):
            options[c, taken:] = most[: ticks + 1 - taken] + gain[c]
        most, best = options.max(dim=0)
        chosen.append(best.to(torch.int16))  # a table of steps by ticks
    plan, left = [], ticks
    for price, best in zip(prices.flip(0), reversed(chosen), strict=True):
        plan.append(int(best[left]))
        left -= int(price[plan[-1]])
    return tuple(reversed(plan))
