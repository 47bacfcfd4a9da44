"""Entropy that the published float32 race leaves of a denoiser's distributions, in closed form, at any T.

A token that enters a race with weight q wins with probability h / (exp(h / q) - 1), h being the grain of the uniforms
(`edlm.baselines.published_sampler.race`). In a plain step from t to s it enters with q = r p_theta,
r = (alpha_s - alpha_t) / (1 - alpha_t): the more steps, the smaller r, and the more of the tail is lost. Only x_t is
drawn, so that one T costs one pass of the network, and differences between T are those of the race.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm import equations
from edlm.baselines.published_sampler import EXACT_LABEL, Precision, PublishedSampler
from edlm.evaluation.judge_models import whole_texts
from edlm.evaluation.judged_quality import average, unigram_entropy
from edlm.interfaces import AnyDenoiser
from edlm.likelihood.estimate import Estimate
from edlm.models.readout import chunks
from edlm.rng import Purpose, seeds, uniforms
from edlm.sampling.sampler import Sampler
from edlm.schedule import AbstractSchedule

GRAIN = 2.0**-24  # of torch.rand in float32


def raced(p: Float64[Tensor, "*n v"], share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n v"]:
    """Return the distribution of a token that is unmasked by the race, where p_theta is `p` and r is `share`."""
    wins = GRAIN / torch.expm1(GRAIN / (p * share[..., None]))
    return wins / wins.sum(dim=-1, keepdim=True)


def entropy(p: Float64[Tensor, "*n v"]) -> Float64[Tensor, "*n"]:
    """Return the entropy in nats."""
    return -torch.xlogy(p, p).sum(dim=-1)


@torch.no_grad()
def race_entropy(
    x0: Int[Tensor, "b l"], denoiser: AnyDenoiser, schedule: AbstractSchedule, steps: int, seed: int
) -> tuple[Estimate, Estimate]:
    """Return (exact, raced): entropy of the distribution of a drawn masked token, in nats per token, at T = `steps`.

    Each sequence is evaluated at one of the T steps, drawn uniformly and at the same fraction of the grid for every T,
    as a mean over its masked positions; a sequence with nothing masked is replaced by the fully masked one.
    """
    rows = torch.arange(len(x0), device=x0.device)
    i = (uniforms(seed, 0, rows, Purpose.TIME) * steps).floor() + 1
    t, s = i / steps, (i - 1) / steps
    u = uniforms(seed, 0, rows, Purpose.MASK, (x0.shape[1],))
    xt = equations.noise(x0, schedule.alpha(t), u, denoiser.mask)
    xt = torch.where((xt == denoiser.mask).any(dim=1, keepdim=True), xt, denoiser.mask)
    share, context, masked = schedule.unmask_probability(t, s), denoiser.read(xt, t), xt == denoiser.mask
    exact, remaining = torch.zeros(2, *x0.shape, dtype=torch.float64, device=x0.device)
    for chunk in chunks(masked, denoiser.vocabulary):
        p = denoiser.log_p(context, chunk).double().exp()
        exact[chunk] = entropy(p)
        remaining[chunk] = entropy(raced(p, share[:, None].expand_as(xt)[chunk]))
    count = masked.sum(dim=1)
    means = [Estimate((entropies.sum(dim=1) / count).cpu(), 1) for entropies in (exact, remaining)]
    return means[0], means[1]


@dataclass(frozen=True)
class EntropyRow:
    """Unigram entropy of one sampler's texts: a mean over texts; the error is nan for a single text."""

    steps: int
    sampler: str
    """`exact`, or the label of a published sampler."""
    entropy_nats: float
    standard_error: float
    entropy_bits: float
    """The same in bits, the unit of the published tables."""


def entropy_against_steps(
    canvas: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    schedule: AbstractSchedule,
    steps: Sequence[int],
    seed: int,
    precision: Precision = "float32",
) -> list[EntropyRow]:
    """Measure plain diffusion on the canvas, exact and with the published races, at each number of steps.

    Both have the same distribution but for the races' grain: where the published rows fall below the exact ones,
    precision is the cause. The effect appears where some p_theta are below T h: large vocabularies and many steps.
    """
    keys = seeds(seed, 0, torch.arange(len(canvas), device=canvas.device), Purpose.ROWS)
    rows = []
    for count in steps:
        exact = Sampler(steps=count)
        published = PublishedSampler(sampler=exact, precision=precision)
        for label, sampler in ((EXACT_LABEL, exact), (published.label, published)):
            texts = sampler.sample(canvas, denoiser, None, schedule, keys).cpu()
            entropy = average(unigram_entropy(texts, whole_texts(texts)))
            rows.append(EntropyRow(count, label, entropy.mean, entropy.standard_error, entropy.mean / math.log(2)))
    return rows
