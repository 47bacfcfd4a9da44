"""Low and high estimates of log Z, the logarithm of the partition function (docs/mathematics.md 5.3)."""

import torch
from jaxtyping import Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model
from edlm.likelihood.bounds import noise_sample
from edlm.likelihood.estimate import Estimate
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import draw_candidates


@torch.no_grad()
def log_partition(
    x0: Int[Tensor, "b l"],
    model: Model[AnyDenoiser, AnyEnergy],
    seed: int,
    draws: int,
    log_partition_draws: int,
) -> tuple[Estimate, Estimate]:
    """Return (biased low, biased high) estimates of log Z(x_t, t), averaged over t and x_t (docs/mathematics.md 5.3).

    For step energies the step goes to t = 0, which unmasks all masked positions.
    """
    low, high = torch.zeros(2, len(x0), dtype=torch.float64)
    for i in range(draws):
        t, xt = noise_sample(x0, model.denoiser, model.schedule, seed, i, draws)
        ends = log_partition_ends(xt, t, model.denoiser.read(xt, t), model, seed, i, log_partition_draws)
        low, high = low + ends[0].cpu(), high + ends[1].cpu()
    return Estimate(low / draws, draws), Estimate(high / draws, draws)


def log_partition_ends(
    xt, t, context, model: Model[AnyDenoiser, AnyEnergy], seed: int, i: int, draws: int
) -> tuple[Tensor, Tensor]:
    """Return the low and high estimates of log Z per sequence, summed over groups."""
    rows = torch.arange(len(xt), device=xt.device)
    u = uniforms(seed, i, rows, Purpose.NEGATIVE, (draws, xt.shape[1]))
    x, log_p = draw_candidates(model.denoiser, model.energy, context, xt, xt == model.denoiser.mask, u)
    e = model.energy(x, xt, t, log_p, context)
    low, high = equations.log_partition(equations.log_weight(e).double().transpose(0, 1))
    return low.sum(dim=-1), high.sum(dim=-1)
