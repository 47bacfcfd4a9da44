"""Adaptive compute: the energy and the k of every step that maximise the total gain under a budget of seconds.

The bound is a sum over steps, and a step's term does not depend on what other steps did (docs/mathematics.md 4.5). So
the gain of each choice at each step can be measured separately, and the best plan is a knapsack with one choice per
step, solved exactly by dynamic programming. A plan's distribution is that of its steps, and its bound the sum of
theirs. Only the plan is fitted, so fit it on other sequences than those that the bound is reported for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.interfaces import AnyDenoiser, AnyEnergy, Model
from edlm.likelihood.bounds import step_bound
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.unmasking_paths import trajectory
from edlm.sampling.sampler import EXACT, Sampler, sample_by_plan
from edlm.sampling.state import StepResult
from edlm.schedule import AbstractSchedule

LEAST_TICKS, TICKS_A_STEP = 2000, 100  # minimum ticks of the remaining budget: in all, and per step
HAIR = 1e-9  # tolerance: a whole number of ticks stays whole, and a plan may take exactly the budget

Energies = Mapping[str, AnyEnergy]


@dataclass(frozen=True)
class StepChoice:
    """Choice for one step: k candidates of the energy with the given name; without an energy, a plain step."""

    energy: str | None = None
    candidates: int = 1

    def energy_of(self, energies: Energies) -> AnyEnergy | None:
        """Return the energy of this step. Raise ValueError if there is no energy of that name."""
        if self.energy is not None and self.energy not in energies:
            raise ValueError(f"the plan asks for energy {self.energy!r}; there are: {', '.join(energies) or 'none'}")
        return None if self.energy is None else energies[self.energy]

    def sampler_of(self, sampler: Sampler) -> Sampler:
        """Return the sampler of this step: `sampler` with the candidates of the choice."""
        speculative = sampler.speculative and self.candidates == EXACT
        return replace(sampler, candidates=self.candidates, speculative=speculative)


PLAIN = StepChoice()


@dataclass(frozen=True)
class PlannedSampler:
    """Sampler with a plan of compute per step; grid, window, temperature and unmasking are those of `sampler`."""

    sampler: Sampler
    plan: tuple[StepChoice, ...]
    """One choice per step, from t = 1 on."""

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
        """Sample as `Sampler.sample`, with the choices of the plan."""
        plan = [
            (choice.sampler_of(self.sampler), Model(denoiser, choice.energy_of(energies), schedule))
            for choice in self.plan
        ]
        return sample_by_plan(plan, xt, seeds, on_step)


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
    """Compute the nats of every step, from t = 1 on, under each of the `plans`, per sequence.

    All are measured on the same paths, so that their differences are paired. Raise ValueError for a plan with a
    whole-sequence energy, whose bound would need many repeats.
    """
    _require_step_energies(energies, plans)
    plain = Model(denoiser, None, schedule)
    nats = torch.zeros(sampler.steps, len(plans), len(x0), dtype=torch.float64)
    for draw in range(draws):
        for i, xt, unmasked in trajectory(x0, plain, sampler, seed, draw):
            step, t = sampler.steps - i, sampler.times()[i].item()
            for c, plan in enumerate(plans):
                model = replace(plain, energy=plan[step].energy_of(energies))
                step_sampler = plan[step].sampler_of(sampler)
                nats[step, c] += step_bound(x0, xt, unmasked, t, i, model, step_sampler, seed, draw).cpu()
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
    """Estimate the rigorous T-step bound of the planned sampler, as `sampler_bound`.

    Raise ValueError for a plan with a whole-sequence energy.
    """
    nats = step_nats(x0, denoiser, energies, schedule, planned.sampler, [planned.plan], seed, draws)
    return Estimate(nats.sum(dim=0)[0], draws)


def _require_step_energies(energies: Energies, plans: Sequence[Sequence[StepChoice]]) -> None:
    for choice in dict.fromkeys(choice for plan in plans for choice in plan):
        energy = choice.energy_of(energies)
        if energy is not None and energy.whole_sequence:
            raise ValueError(
                f"the plan asks for energy {choice.energy!r}, which scores whole sequences; a plan takes energies "
                "that score the tokens of a step"
            )


def best_plan(
    gains: Float64[Tensor, "i c"], seconds: Float64[Tensor, "i c"], budget_seconds: float, ticks: int | None = None
) -> tuple[int, ...]:
    """Select one choice per step that maximises the total gain, with total seconds within the budget.

    Only the seconds beyond the quickest choice of a step are rounded, up to a tick: 1 / `ticks` of the budget that the
    quickest plan leaves. So no plan exceeds the budget, the quickest one is never rounded out of it, and none within
    the rounded budget gains more. Raise ValueError if even the quickest plan exceeds the budget.
    """
    ticks = ticks or max(LEAST_TICKS, TICKS_A_STEP * len(seconds))  # every step rounds: more steps need finer ticks
    least = seconds.min(dim=1, keepdim=True).values
    quickest = least.sum().item()
    if quickest > budget_seconds * (1 + HAIR):
        raise ValueError(f"the quickest plan takes {quickest:g} seconds; a budget of {budget_seconds:g} is too small")
    tick = max((budget_seconds - quickest) / ticks, 1e-300)  # with nothing left, only the quickest choices fit
    prices = ((seconds - least) / tick - HAIR).ceil().clamp(max=ticks + 1).long()
    total = torch.zeros(ticks + 1, dtype=torch.float64)  # gain of the steps so far, per number of ticks
    chosen = []
    for price, gain in zip(prices, gains, strict=True):
        options = torch.full((len(price), ticks + 1), -math.inf, dtype=torch.float64)
        for c, cost in enumerate(price.tolist()):
            options[c, cost:] = total[: ticks + 1 - cost] + gain[c]
        total, best = options.max(dim=0)
        chosen.append(best.to(torch.int16))  # int16 keeps the table of steps x ticks small
    plan, remaining = [], ticks
    for price, best in zip(prices.flip(0), reversed(chosen), strict=True):
        plan.append(int(best[remaining]))
        remaining -= int(price[plan[-1]])
    return tuple(reversed(plan))
