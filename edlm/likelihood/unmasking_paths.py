"""Paths along which a bound is computed: the masked and the newly unmasked positions at every step towards a text.

The sampler selects positions independently of their tokens (`edlm.sampling.unmasking`). So the paths to a given text
can be drawn by its own rules, with the text's tokens in place of its draws: the two distributions of the path then
differ in the probability of the tokens alone, and a step costs -log p(x_0 at U | x_t).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from edlm.interfaces import Model
from edlm.rng import Purpose, seeds, uniforms
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import AtRandom
from edlm.schedule import AbstractSchedule

Stop = tuple[int, Int[Tensor, "b l"], Bool[Tensor, "b l"]]


def trajectory(
    x0: Int[Tensor, "b l"],
    model: Model,
    sampler: Sampler,
    seed: int,
    draw: int,
    first_row: int = 0,
    known: Bool[Tensor, "b l"] | None = None,
) -> Iterator[Stop]:
    """Yield (i, x_t at t_i, U_i) for the steps i = T to 1 of one path per text; rows count from `first_row`.

    `known`: positions of the text that the canvas holds from the start, such as a prompt; they are never masked.
    """
    if sampler.unmasking == AtRandom():
        unmask_at = unmask_steps(x0, model.schedule, sampler.times(), seed, draw, first_row)
        if known is not None:
            unmask_at = unmask_at.masked_fill(known, sampler.steps + 1)
        for i in range(sampler.steps, 0, -1):
            yield i, torch.where(unmask_at <= i, model.denoiser.mask, x0), unmask_at == i
    else:
        rows = first_row + torch.arange(len(x0), device=x0.device)
        given = torch.zeros_like(x0, dtype=torch.bool) if known is None else known
        yield from _walked(x0, model, sampler, seeds(seed, draw, rows, Purpose.UNMASK), given)


def unmask_steps(
    x0: Int[Tensor, "b l"],
    schedule: AbstractSchedule,
    times: Float64[Tensor, " i"],
    seed: int,
    draw: int,
    first_row: int = 0,
) -> Int[Tensor, "b l"]:
    """Draw for each position the step i (from t_i to t_(i - 1)) that unmasks it: P(masked at t) = 1 - alpha_t."""
    rows = first_row + torch.arange(len(x0), device=x0.device)
    u = uniforms(seed, draw, rows, Purpose.UNMASK, (x0.shape[1],))
    reached = times[1:].to(x0.device)
    return torch.searchsorted(1 - schedule.alpha(reached), u).clamp(max=len(reached) - 1) + 1


def _walked(
    x0: Int[Tensor, "b l"],
    model: Model,
    sampler: Sampler,
    keys: Int64[Tensor, " b"],
    given: Bool[Tensor, "b l"],
) -> Iterator[Stop]:
    """Yield as `trajectory`, for rules that may unmask a position twice, or at a step that depends on the others."""
    denoiser, schedule = model.denoiser, model.schedule
    times, length = sampler.times().to(x0.device), x0.shape[1]
    masked = ~given
    for i in range(sampler.steps, 0, -1):
        t, s = times[i].expand(len(x0)), times[i - 1].expand(len(x0))
        _, remasked = sampler.unmasking.shares(t, s, schedule)
        u = [uniforms(keys, i, 0, purpose, (length,)) for purpose in (Purpose.UNMASK, Purpose.REMASK)]
        xt = torch.where(masked, denoiser.mask, x0)
        drawn = sampler.unmasking.draw(masked, given, t, s, schedule, u[0])
        new = sampler.unmasking.settle(drawn, xt, denoiser.read(xt, t), denoiser)
        yield i, xt, new
        masked = (masked & ~new) | (~masked & ~given & (u[1] < remasked[:, None]))
