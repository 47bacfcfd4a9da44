"""Distance of a learned energy from log p_theta - log q, for sources whose distribution is known exactly."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.evaluation.exact_distance import QUARTERS, Interval, ratio
from edlm.exact.hidden_markov import HiddenMarkovModel
from edlm.exact.models import ExactEnergy
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, proposal_of
from edlm.likelihood.estimate import Estimate
from edlm.models.readout import chunks
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import propose, propose_from


@dataclass(frozen=True)
class EnergyDistance:
    """Distance of a learned energy E from E* = log p_theta - log q, over groups with two or more new tokens.

    Ranking determines E only up to a constant of x_t, so only differences between tokens at the same x_t count.
    """

    groups: int
    """Number of groups compared; all means are over them, or over those where they are defined."""
    variance_on_samples: Estimate
    """Variance of E - E* over tokens drawn from q(x_U | x_t), nats squared: on likely text, where it matters."""
    variance_on_candidates: Estimate
    """The same over the possible candidates of p_theta, dominated by tokens that q hardly ever draws."""
    offset: Estimate
    """Mean of E - E* over tokens from q minus that over the candidates; above 0, E separates them too little."""
    choice_total_variation: Estimate
    """Total variation between the choices of E and E* among the k candidates: 0 to 1, even if some are impossible."""
    choice_kl: Estimate
    """KL(choice by E* || choice by E), nats, over groups with a possible candidate."""
    exact_gain: Estimate
    """Gain per step from k candidates, the truth among them, with E*: nats per group, at most log k."""
    lost_gain: Estimate
    """The part of `exact_gain` that E does not achieve: nats per group of the sampler's own bound."""
    correlation_misleading: float
    """Correlation of E with E* over all candidates and all x_t. It is high for any energy that finds impossible text
    unlikely and knows the number of new tokens, and says nothing about the choice among likely candidates."""


@dataclass(frozen=True)
class EnergyReport:
    """Energy distances overall, by the step's t, and by the number of the group's new tokens (inclusive)."""

    whole: EnergyDistance
    by_quarter: dict[Interval, EnergyDistance]
    by_new: dict[tuple[int, int], EnergyDistance]


@torch.no_grad()
def energy_distance(
    x0: Int[Tensor, "b l"],
    model: Model[AnyDenoiser, AnyEnergy],
    distribution: HiddenMarkovModel,
    seed: int,
    steps: tuple[int, ...],
    draws: int,
    candidates: int,
) -> EnergyReport:
    """Compare the energy of `model` with the exact one at `draws` random steps of each grid T in `steps`, on x_0.

    Whole-sequence energies are compared as if every masked position were unmasked, since that is what they score.
    At each x_t, k = `candidates` samples of q (x_0 and others drawn exactly from q(x_U | x_t)) are scored, and as
    many from p_theta, or from the energy's proposal, against which E* is then the ratio. Raise ValueError for k < 2,
    and if no step unmasks two tokens of a group.
    """
    if candidates < 2:
        raise ValueError(f"candidates is {candidates}; to compare tokens at the same x_t takes at least 2")
    grids = [grid for grid in steps for _ in range(draws)]
    observations = [_look(x0, model, distribution, seed, number, grid, candidates) for number, grid in enumerate(grids)]
    # t is [n b], new [n b g], each of the four energies [n b k g].
    t, new, *energies = (torch.stack(parts).cpu() for parts in zip(*observations, strict=True))
    observed = _Observed(*energies)
    joint = new > 1
    if not joint.any():
        raise ValueError(f"no step of the grids {steps} unmasks two tokens of a group; give smaller numbers of steps")
    quarters = {q: joint & ((t > q[0]) & (t <= q[1]))[..., None] for q in QUARTERS}
    powers = [2**i for i in range(1, int(new.max()).bit_length())]
    sizes = {(low, 2 * low - 1): joint & (new >= low) & (new < 2 * low) for low in powers}
    return EnergyReport(
        observed.over(joint),
        {q: observed.over(chosen) for q, chosen in quarters.items() if chosen.any()},
        {size: observed.over(chosen) for size, chosen in sizes.items() if chosen.any()},
    )


@dataclass(frozen=True)
class _Observed:
    """Learned and exact energies of samples of q, the data first, and of candidates, at n steps."""

    samples: Float64[Tensor, "n b k g"]
    exact_samples: Float64[Tensor, "n b k g"]
    candidates: Float64[Tensor, "n b k g"]
    exact_candidates: Float64[Tensor, "n b k g"]

    def over(self, chosen: Bool[Tensor, "n b g"]) -> EnergyDistance:
        """Return the distance over the chosen groups."""
        k = self.samples.shape[2]
        possible = self.exact_candidates < math.inf
        count = possible.sum(dim=2)
        error = self.samples - self.exact_samples
        candidate_error = torch.where(possible, self.candidates - self.exact_candidates, 0.0)
        mean = candidate_error.sum(dim=2) / count
        spread = torch.where(possible, candidate_error - mean[:, :, None], 0.0).square().sum(dim=2) / (count - 1)
        learned, exact = (equations.log_weight(e).log_softmax(dim=2) for e in (self.candidates, self.exact_candidates))
        variation = (learned.exp() - exact.exp()).abs().sum(dim=2) / 2
        kl = torch.where(exact > -math.inf, exact.exp() * (exact - learned), 0.0).sum(dim=2)
        gain, exact_gain = (
            math.log(k) - equations.nce_ranking(data[:, :, 0].flatten(0, 1), negatives[:, :, 1:].flatten(0, 1))
            for data, negatives in (
                (self.samples, self.candidates),
                (self.exact_samples, self.exact_candidates),
            )
        )
        exact_gain = exact_gain.view(chosen.shape)
        pairs = torch.stack([self.candidates, self.exact_candidates])[:, possible & chosen[:, :, None]]
        return EnergyDistance(
            groups=int(chosen.sum()),
            variance_on_samples=_mean(error.var(dim=2), chosen),
            variance_on_candidates=_mean(spread, chosen & (count > 1)),
            offset=_mean(error.mean(dim=2) - mean, chosen & (count > 0)),
            choice_total_variation=_mean(variation, chosen & (count > 0)),
            choice_kl=_mean(kl, chosen & (count > 0)),
            exact_gain=_mean(exact_gain, chosen),
            lost_gain=_mean(exact_gain - gain.view(chosen.shape), chosen),
            correlation_misleading=torch.corrcoef(pairs)[0, 1].item() if pairs.shape[1] > 1 else math.nan,
        )


def _look(x0, model: Model[AnyDenoiser, AnyEnergy], distribution, seed, number, grid, candidates) -> tuple[Tensor, ...]:
    """Return t, the number of new tokens per group, and the energies of `_Observed`.

    Each sequence is observed at one random step of the grid.
    """
    denoiser, energy, schedule = model.denoiser, model.energy, model.schedule
    rows, shape = torch.arange(len(x0), device=x0.device), (x0.shape[1],)
    i = (uniforms(seed, number, rows, Purpose.GRID) * grid).floor() + 1
    t, s = i / grid, (i - 1) / grid
    xt = equations.noise(x0, schedule.alpha(t), uniforms(seed, number, rows, Purpose.MASK, shape), denoiser.mask)
    masked = xt == denoiser.mask
    u = uniforms(seed, number, rows, Purpose.UNMASK, shape)
    new = masked if energy.whole_sequence else equations.unmask(masked, schedule.unmask_probability(t, s), u)
    truth = equations.carry_over(xt, x0, new)[:, None].repeat(1, candidates, 1)
    u = uniforms(seed, number, rows, Purpose.TRUTH, (candidates - 1, *shape)).flatten(0, 1)
    repeated = (values.repeat_interleave(candidates - 1, 0) for values in (xt, new))
    truth[:, 1:] = distribution.fill(*repeated, u)[0].unflatten(0, (-1, candidates - 1))
    context = denoiser.read(xt, t)
    u = uniforms(seed, number, rows, Purpose.NEGATIVE, (candidates, *shape))
    if (proposal := proposal_of(energy)) is not None:
        drawn, log_p = propose_from(proposal, context, xt, new, u)
        log_p_truth = proposal.log_p(truth, xt, context)[..., None]
    else:
        drawn, by_position = propose(denoiser, context, xt, new, u)
        log_p = equations.sum_by_group(by_position, energy.block)
        log_p_truth = equations.sum_by_group(_log_p_of(denoiser, context, new, truth), energy.block)
    exact = ExactEnergy(distribution, energy.whole_sequence, energy.block)
    energies = [
        score(x, xt, t, log, context).double()
        for x, log in ((truth, log_p_truth), (drawn, log_p))
        for score in (energy, exact)
    ]
    return t, equations.sum_by_group(new.long(), energy.block), *energies


def _log_p_of(
    denoiser: AnyDenoiser, context: Tensor, where: Bool[Tensor, "b l"], x: Int[Tensor, "b k l"]
) -> Float64[Tensor, "b k l"]:
    """Return log p_theta of the tokens of every x at the selected positions, 0 elsewhere."""
    result = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for chunk in chunks(where, denoiser.vocabulary):
        rows, positions = torch.nonzero(chunk, as_tuple=True)
        result[rows, :, positions] = denoiser.log_p(context, chunk).double().gather(-1, x[rows, :, positions])
    return result


def _mean(values: Float64[Tensor, "n b g"], chosen: Bool[Tensor, "n b g"]) -> Estimate:
    """Return the mean over the chosen entries; nan if there are none."""
    totals = torch.where(chosen, values, 0.0).sum(dim=(0, 2))
    return ratio(totals, chosen.sum(dim=(0, 2)).double(), len(values))
