"""Distance of a denoiser and of a sampler from a source whose distribution is known exactly.

For energies see `edlm.evaluation.exact_energy_distance`. Standard errors are over sequences.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm import equations
from edlm.exact.hidden_markov import Entropy, HiddenMarkovModel
from edlm.interfaces import AnyDenoiser
from edlm.likelihood.estimate import Estimate
from edlm.models.readout import chunks
from edlm.rng import Purpose, seeds, uniforms
from edlm.schedule import AbstractSchedule

Interval = tuple[float, float]
QUARTERS: tuple[Interval, ...] = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


@dataclass(frozen=True)
class DenoiserDistance:
    """Distance of the denoiser's marginals from the exact ones, over the times of one quarter."""

    kl_nats_per_position: Estimate
    """Mean of KL(q(x^l | x_t) || p_theta(x^l | x_t)) over the masked positions."""
    nelbo_nats: Estimate
    """The quarter's part of NELBO - H, nats per sequence; the quarters sum to the loss due to the marginals."""


@torch.no_grad()
def denoiser_distance(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    distribution: HiddenMarkovModel,
    schedule: AbstractSchedule,
    seed: int,
    draws: int,
) -> dict[Interval, DenoiserDistance]:
    """Compute the distance per quarter of t, at `draws` stratified times per quarter for each sequence x_0."""
    rows = torch.arange(len(x0), device=x0.device)
    distances = {}
    for quarter, (start, end) in enumerate(QUARTERS):
        kl, count, excess = torch.zeros(3, len(x0), dtype=torch.float64)
        for i in range(draws):
            u = uniforms(seed, quarter, rows, Purpose.TIME)
            t = start + (end - start) * ((u + i / draws) % 1.0)
            u = uniforms(seed, quarter * draws + i, rows, Purpose.MASK, (x0.shape[1],))
            xt = equations.noise(x0, schedule.alpha(t), u, denoiser.mask)
            by_position = _marginal_kl(xt, t, denoiser, distribution)
            kl += by_position.sum(dim=-1).cpu()
            count += (xt == denoiser.mask).sum(dim=-1).cpu()
            excess += equations.nelbo_integrand(by_position, schedule.weight(t)).cpu()
        distances[start, end] = DenoiserDistance(
            ratio(kl, count, draws), Estimate((end - start) * excess / draws, draws)
        )
    return distances


def _marginal_kl(
    xt: Int[Tensor, "b l"], t, denoiser: AnyDenoiser, distribution: HiddenMarkovModel
) -> Float64[Tensor, "b l"]:
    """Return KL(q || p_theta) at masked positions, 0 elsewhere."""
    context, q = denoiser.read(xt, t), distribution.posteriors(xt)
    result = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
    for chunk in chunks(xt == denoiser.mask, denoiser.vocabulary):
        log_p, exact = denoiser.log_p(context, chunk).double(), q[chunk]
        result[chunk] = torch.where(exact > 0, exact * (exact.log() - log_p), 0.0).sum(dim=-1)
    return result


def ratio(totals: Float64[Tensor, " b"], counts: Float64[Tensor, " b"], draws: int) -> Estimate:
    """Return sum(totals) / sum(counts) over sequences, as values with this mean and the linearised spread.

    This is the mean over positions or groups, whose number differs between sequences: nan if there are none, and
    infinite, with no error, if a total is infinite.
    """
    mean = totals.sum() / counts.sum()
    if mean.isinf():
        return Estimate(mean.expand_as(totals), draws)
    return Estimate(mean + (totals - mean * counts) / counts.mean(), draws)


@dataclass(frozen=True)
class SampleDistance:
    """Distance of a sampler's distribution p from the source's distribution q, by texts drawn from p.

    E_p[-log q] - H(q) = KL(p || q) + H(p) - H(q). It detects text that is unlikely under q, but not text that p omits:
    a sampler that writes only the likeliest sequence is below 0. A value near 0 is necessary, not sufficient.
    The sampler's bound minus H(q) detects omissions; the two together leave little room.
    """

    possible: Estimate
    """The share of texts that have nonzero probability under q."""
    cross_entropy: Estimate
    """-log q of the possible texts, nats per sequence."""
    entropy: Entropy
    """H(q)."""
    pair_total_variation: float
    """Total variation of neighbouring-token frequencies from those of q: detects omissions too, but only in pairs."""
    pair_total_variation_of_source: float
    """The same for as many sequences drawn from q itself: the level of chance."""

    @property
    def excess_nats(self) -> tuple[float, float]:
        """Return (E_p[-log q] - H(q), its standard error), nats per sequence, over the possible texts."""
        error = math.hypot(self.cross_entropy.standard_error, self.entropy.standard_error)
        return self.cross_entropy.mean - self.entropy.mean, error


@torch.no_grad()
def sample_distance(texts: Int[Tensor, "n l"], distribution: HiddenMarkovModel, seed: int) -> SampleDistance:
    """Compute the distance from `distribution` of the one that `texts` were drawn from.

    `seed` selects the sequences drawn from q for the reference and for H(q), which differ; it is not the source's own
    seed.
    """
    nll, pairs = -distribution.log_p(texts).cpu(), distribution.pairs()
    # Of a seed of its own: `distribution.entropy(seed)` draws its sequences from `seed`.
    reference = distribution.draw(int(seeds(seed, 0, 0, Purpose.TRUTH)), torch.arange(len(texts)))
    variations = [
        (_pair_frequencies(x.cpu(), distribution.vocabulary) - pairs).abs().sum().item() / 2 for x in (texts, reference)
    ]
    possible = nll < math.inf
    return SampleDistance(
        Estimate(possible.double(), 1),
        Estimate(nll[possible], 1),
        distribution.entropy(seed),
        variations[0],
        variations[1],
    )


def _pair_frequencies(x: Int[Tensor, "n l"], vocabulary: int) -> Float64[Tensor, "v v"]:
    codes = x[:, :-1] * vocabulary + x[:, 1:]
    counts = torch.bincount(codes.flatten(), minlength=vocabulary**2).double()
    return (counts / counts.sum()).view(vocabulary, vocabulary)
