"""How far a denoiser and a sampler are from the truth, where the source's law is known exactly.

For an energy see `edlm.evaluation.exact_energy_distance`. Standard errors are over sequences.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm import equations
from edlm.exact.hidden_markov import Entropy, Law
from edlm.interfaces import AnyDenoiser
from edlm.likelihood.estimate import Estimate, difference
from edlm.models.readout import chunks
from edlm.rng import Purpose, uniforms
from edlm.schedule import AbstractSchedule

Interval = tuple[float, float]
QUARTERS: tuple[Interval, ...] = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


@dataclass(frozen=True)
class DenoiserDistance:
    """Of the denoiser's marginals, for the times of one quarter."""

    kl_nats_per_position: Estimate
    """Mean of KL(q(x^l | x_t) || p_theta(x^l | x_t)) over the masked positions."""
    nelbo_nats: Estimate
    """The quarter's part of NELBO - H, per sequence: over the quarters these add up to what the marginals lose."""


@torch.no_grad()
def denoiser_distance(
    x0: Int[Tensor, "b l"], denoiser: AnyDenoiser, law: Law, schedule: AbstractSchedule, seed: int, draws: int
) -> dict[Interval, DenoiserDistance]:
    """The distance by quarter of t: `draws` stratified times in each, for each of the law's sequences x_0."""
    rows = torch.arange(len(x0), device=x0.device)
    found = {}
    for quarter, (start, end) in enumerate(QUARTERS):
        kl, count, excess = torch.zeros(3, len(x0), dtype=torch.float64)
        for i in range(draws):
            u = uniforms(seed, quarter, rows, Purpose.TIME)
            t = start + (end - start) * ((u + i / draws) % 1.0)
            u = uniforms(seed, quarter * draws + i, rows, Purpose.MASK, (x0.shape[1],))
            xt = equations.noise(x0, schedule.alpha(t), u, denoiser.mask)
            by_position = _marginal_kl(xt, t, denoiser, law)
            kl += by_position.sum(dim=-1).cpu()
            count += (xt == denoiser.mask).sum(dim=-1).cpu()
            excess += equations.nelbo_integrand(by_position, schedule.weight(t)).cpu()
        found[start, end] = DenoiserDistance(ratio(kl, count, draws), Estimate((end - start) * excess / draws, draws))
    return found


def _marginal_kl(xt: Int[Tensor, "b l"], t, denoiser: AnyDenoiser, law: Law) -> Float64[Tensor, "b l"]:
    """KL(q || p_theta) at masked positions, 0 elsewhere."""
    context, q = denoiser.read(xt, t), law.posteriors(xt)
    result = torch.zeros(xt.shape, dtype=torch.float64, device=xt.device)
    for chunk in chunks(xt == denoiser.mask, denoiser.vocabulary):
        log_p, here = denoiser.log_p(context, chunk).double(), q[chunk]
        result[chunk] = torch.where(here > 0, here * (here.log() - log_p), 0.0).sum(dim=-1)
    return result


def ratio(totals: Float64[Tensor, " b"], counts: Float64[Tensor, " b"], draws: int) -> Estimate:
    """sum(totals) / sum(counts) over sequences, with values whose mean it is and whose spread is the linearised one.

    It is the mean over positions or groups, of which sequences have different numbers; nan where there are none, and
    infinite, with no error, where one of them is.
    """
    mean = totals.sum() / counts.sum()
    if mean.isinf():
        return Estimate(mean.expand_as(totals), draws)
    return Estimate(mean + (totals - mean * counts) / counts.mean(), draws)


@dataclass(frozen=True)
class SampleDistance:
    """Of a sampler's law p from the source's law q, by texts drawn from p.

    E_p[-log q] - H(q) = KL(p || q) + H(p) - H(q). It sees text that q finds unlikely, and does not see text that p
    leaves out: a sampler that writes nothing but the likeliest sequence is below 0. Near 0 is necessary, not enough.
    The bound of the sampler sees what is left out (`bound_excess`); the two together leave little room.
    """

    possible: Estimate
    """The share of texts that q can draw at all."""
    cross_entropy: Estimate
    """-log q of those, nats per sequence."""
    entropy: Entropy
    """H(q)."""
    pair_total_variation: float
    """Between the frequencies of neighbouring tokens and those of q: sees what is left out too, but only in pairs."""
    pair_total_variation_of_law: float
    """The same of as many sequences drawn from q itself: what chance alone does."""

    @property
    def excess_nats(self) -> tuple[float, float]:
        """(E_p[-log q] - H(q), its standard error), nats per sequence, over the possible texts."""
        error = math.hypot(self.cross_entropy.standard_error, self.entropy.standard_error)
        return self.cross_entropy.mean - self.entropy.mean, error


@torch.no_grad()
def sample_distance(texts: Int[Tensor, "n l"], law: Law, seed: int) -> SampleDistance:
    """The distance of the law that `texts` were drawn from; `seed`, of the sequences of q, is not the source's own."""
    nll, wanted = -law.log_p(texts).cpu(), law.pairs()
    others = law.draw(seed, torch.arange(len(texts)))
    variations = [(_pair_frequencies(x.cpu(), law.vocabulary) - wanted).abs().sum().item() / 2 for x in (texts, others)]
    possible = nll < math.inf
    return SampleDistance(
        Estimate(possible.double(), 1), Estimate(nll[possible], 1), law.entropy(seed), variations[0], variations[1]
    )


def bound_excess(bound: Estimate, x0: Int[Tensor, "b l"], law: Law) -> Estimate:
    """A bound on -log p less the exact -log q, sequence by sequence: its mean is at least KL(q || p).

    It sees text that the model leaves out. Paired, its standard error is far below that of the bound itself.
    """
    return difference(bound, Estimate(-law.log_p(x0).cpu(), 1))


def _pair_frequencies(x: Int[Tensor, "n l"], vocabulary: int) -> Float64[Tensor, "v v"]:
    codes = x[:, :-1] * vocabulary + x[:, 1:]
    counts = torch.bincount(codes.flatten(), minlength=vocabulary**2).double()
    return (counts / counts.sum()).view(vocabulary, vocabulary)
