"""Exact likelihood of samplers whose order is a function of the text (docs/mathematics.md 4.4).

With fixed counts, `most_certain` unmasks the same positions at the same step whenever the text is the same, so a text
has one path: its probability is the product of those of its steps (DUEL, Turok et al. 2026, arXiv 2603.01367). This is
ANOTHER DISTRIBUTION than that of the sampler that unmasks at random.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from edlm.config import ConfigurationError
from edlm.cooperative_work import Cooperative, run_to_end
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, NormalisedEnergy, read
from edlm.likelihood.bounds import normalised_nll
from edlm.likelihood.estimate import Estimate
from edlm.models.readout import chunks
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.unmasking import MostCertain
from edlm.schedule import AbstractSchedule

FIXED_ORDER = MostCertain(counts="fixed")


@dataclass(frozen=True)
class ExactOrder:
    """Likelihood of texts along their only path."""

    nll: Estimate
    """-log p in nats, exact."""
    greedy: Bool[Tensor, " b"]
    """Whether every token is the denoiser's likeliest at its position: the text of this order at temperature 0."""


def exact_order_nll(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    energy: AnyEnergy | None,
    schedule: AbstractSchedule,
    sampler: Sampler,
    known: Bool[Tensor, "b l"] | None = None,
) -> Estimate:
    """Compute -log p(x_0) in nats, exact, of a sampler that unmasks the most certain first in fixed counts.

    `known`: positions that the canvas holds from the start; the result is -log p of the others given them. It depends
    on no seed. Ties are broken as in the sampler, from the left. Raise ConfigurationError for a sampler without an
    exact likelihood: another order, k > 1 candidates, or an energy of whole sequences.
    """
    return run_to_end(stepwise_exact_order(x0, Model(denoiser, energy, schedule), sampler, known)).nll


def has_exact_likelihood(sampler: Sampler) -> bool:
    """Return whether the likelihood is exact, unless the sampler draws exactly from an energy of whole sequences."""
    return sampler.unmasking == FIXED_ORDER and sampler.candidates in (1, EXACT)


def require_exact(sampler: Sampler, energy: AnyEnergy | None) -> None:
    """Raise ConfigurationError, with the reason, unless the likelihood of the sampler is computed exactly."""
    if sampler.unmasking != FIXED_ORDER:
        raise ConfigurationError(
            f"unmasking is {sampler.unmasking}: a likelihood is exact where the order depends on the text alone; "
            "give {kind: most_certain, counts: fixed}, or use the bound"
        )
    if energy is None or sampler.candidates == 1:
        return
    name = type(energy).__name__
    if sampler.candidates != EXACT:
        raise ConfigurationError(
            f"candidates is {sampler.candidates}: the probability of the chosen one is a mean over the others, which "
            "is bounded and not computed; give 1, or 0 with a normalised energy, or use the bound"
        )
    if not isinstance(energy, NormalisedEnergy):
        raise ConfigurationError(f"candidates is 0 (exact), and {name} is not normalised; give 1, or another energy")
    if energy.whole_sequence:
        raise ConfigurationError(
            f"{name} scores whole sequences, so the probability of a step is a sum over the tokens that it discards; "
            "give candidates: 1, an energy of a step's tokens (conditional), or use the bound"
        )


@torch.no_grad()
def stepwise_exact_order(
    x0: Int[Tensor, "b l"], model: Model, sampler: Sampler, known: Bool[Tensor, "b l"] | None = None
) -> Cooperative[ExactOrder]:
    """Compute the likelihood by replaying `Sampler.step` with the texts' tokens, one pass of all rows per pause."""
    require_exact(sampler, model.energy)
    denoiser, times = model.denoiser, sampler.times().to(x0.device)
    given = torch.zeros_like(x0, dtype=torch.bool) if known is None else known
    no_seed = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
    nats = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    greedy = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
    xt = torch.where(given, x0, denoiser.mask)
    for i in range(sampler.steps, 0, -1):
        t, s = times[i].expand(len(x0)), times[i - 1].expand(len(x0))
        state = sampler.choose_positions(xt, t, s, no_seed + i, no_seed, model, given)
        rows = torch.nonzero(state.moves)[:, 0]
        if len(rows) == 0:
            continue
        moving, truth = state.at(rows), x0[rows]
        context = read(denoiser, moving.xt, moving.t, sampler.needed(moving, model))
        unmasked = sampler.unmasking.settle(moving.unmasked, moving.xt, context, denoiser)
        log_p, likeliest = _of_truth(denoiser, context, unmasked, truth)
        if sampler.may_score(moving.t, model.energy).any():
            assert isinstance(model.energy, NormalisedEnergy)
            nats[rows] += normalised_nll(truth, moving.xt, unmasked, moving.t, context, log_p, model.energy)
        else:
            nats[rows] -= log_p.sum(dim=1)
        greedy[rows] &= likeliest
        xt = xt.index_put((rows,), torch.where(unmasked, truth, moving.xt))
        yield
    return ExactOrder(Estimate(nats.cpu(), draws=1), greedy.cpu())


def _of_truth(
    denoiser: AnyDenoiser, context: Tensor, where: Bool[Tensor, "b l"], x0: Int[Tensor, "b l"]
) -> tuple[Float64[Tensor, "b l"], Bool[Tensor, " b"]]:
    """Return log p_theta of x_0 at the selected positions, 0 elsewhere, and whether it is the likeliest at all."""
    log_p = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
    likeliest = torch.ones_like(where)
    for chunk in chunks(where, denoiser.vocabulary):
        by_token = denoiser.log_p(context, chunk)
        log_p[chunk] = by_token.gather(-1, x0[chunk][:, None])[:, 0].double()
        likeliest[chunk] = by_token.argmax(dim=-1) == x0[chunk]
    return log_p, likeliest.all(dim=1)
