"""What the published race in float32 leaves of the entropy of a denoiser's own laws, in closed form, at any T.

A token that enters a race with weight q wins with probability h / (exp(h / q) - 1), h the grain of the uniforms
(`edlm.baselines.published_sampler.race`). In a plain step from t to s it enters with q = r p_theta,
r = (alpha_s - alpha_t) / (1 - alpha_t): the more steps, the smaller r, the more of the tail is lost. Nothing is drawn
here but x_t, so that a T costs one pass of the network, and differences between T are those of the race.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm import equations
from edlm.baselines.published_sampler import EXACT_LABEL, Precision, PublishedSampler
from edlm.evaluation.judge import whole_texts
from edlm.evaluation.quality import average, unigram_entropy
from edlm.interfaces import AnyDenoiser
from edlm.likelihood.estimate import Estimate
from edlm.models.readout import chunks
from edlm.rng import Purpose, seeds, uniforms
from edlm.sampling.sampler import Sampler
from edlm.schedule import AbstractSchedule

GRAIN = 2.0**-24  # of torch.rand in float32


def raced(p: Float64[Tensor, "*n v"], share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n v"]:
    """The law of a token that is revealed by the race, where p_theta is p and r is `share`."""
    wins = GRAIN / torch.expm1(GRAIN / (p * share[..., None]))
    return wins / wins.sum(dim=-1, keepdim=True)


def entropy(p: Float64[Tensor, "*n v"]) -> Float64[Tensor, "*n"]:
    """In nats."""
    return -torch.xlogy(p, p).sum(dim=-1)


@torch.no_grad()
def race_entropy(
    x0: Int[Tensor, "b l"], denoiser: AnyDenoiser, schedule: AbstractSchedule, steps: int, seed: int
) -> tuple[Estimate, Estimate]:
    """(exact, raced): entropy of the law that a masked token is drawn from, in nats a token, at T = `steps`.

    For each sequence at one step of the T, uniform and the same share of the way for every T, as a mean over its masked
    positions; a sequence in which nothing is masked counts as its neighbour, the fully masked one.
    """
    rows = torch.arange(len(x0), device=x0.device)
    i = (uniforms(seed, 0, rows, Purpose.TIME) * steps).floor() + 1
    t, s = i / steps, (i - 1) / steps
    u = uniforms(seed, 0, rows, Purpose.MASK, (x0.shape[1],))
    xt = equations.noise(x0, schedule.alpha(t), u, denoiser.mask)
    xt = torch.where((xt == denoiser.mask).any(dim=1, keepdim=True), xt, denoiser.mask)
    share, context, masked = schedule.reveal(t, s), denoiser.read(xt, t), xt == denoiser.mask
    exact, left = torch.zeros(2, *x0.shape, dtype=torch.float64, device=x0.device)
    for chunk in chunks(masked, denoiser.vocabulary):
        p = denoiser.log_p(context, chunk).double().exp()
        exact[chunk] = entropy(p)
        left[chunk] = entropy(raced(p, share[:, None].expand_as(xt)[chunk]))
    count = masked.sum(dim=1)
    means = [Estimate((each.sum(dim=1) / count).cpu(), 1) for each in (exact, left)]
    return means[0], means[1]


@dataclass(frozen=True)
class EntropyRow:
    """Unigram entropy of the texts of one sampler: a mean over texts; nan for the error of a single one."""

    steps: int
    sampler: str
    """`exact`, or the label of a legacy sampler."""
    entropy_nats: float
    standard_error: float
    entropy_bits: float
    """The same in the unit of the published tables."""


def entropy_against_steps(
    canvas: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    schedule: AbstractSchedule,
    steps: Sequence[int],
    seed: int,
    precision: Precision = "float32",
) -> list[EntropyRow]:
    """Plain diffusion on the canvas, exact and by the published races, at each number of steps.

    Same law without the races' grain: where the legacy rows fall below the exact ones, precision is the cause. It shows
    where some p_theta are below T h: large vocabularies and many steps.
    """
    keys = seeds(seed, 0, torch.arange(len(canvas), device=canvas.device), Purpose.ROWS)
    rows = []
    for count in steps:
        exact = Sampler(steps=count)
        legacy = PublishedSampler(sampler=exact, precision=precision)
        for label, sampler in ((EXACT_LABEL, exact), (legacy.label, legacy)):
            texts = sampler.sample(canvas, denoiser, None, schedule, keys).cpu()
            entropy = average(unigram_entropy(texts, whole_texts(texts)))
            rows.append(EntropyRow(count, label, entropy.mean, entropy.standard_error, entropy.mean / math.log(2)))
    return rows
