"""Noise-free form of the paper's estimator for `coar`: averaged over times and masks, it is the AR perplexity."""

import math

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AbstractEnergy, AnyDenoiser
from edlm.likelihood.estimate import Estimate
from edlm.models.readout import chunks
from edlm.schedule import AbstractSchedule


@torch.no_grad()
def carry_over_estimate(
    x0: Int[Tensor, "b l"], denoiser: AnyDenoiser, energy: AbstractEnergy, schedule: AbstractSchedule
) -> Estimate:
    """Compute E_t E_{x_t}[w(t) (-log p_theta + E + log Z)] of `coar`, exact, in nats per sequence: NOT a bound.

    Its log Z is 0 and log p_theta cancels against the same term in the energy, so the bracket is a sum over the masked
    positions of terms that depend neither on the other masked positions nor on t. Each term is the bracket at an x_t
    with one position masked alone, computed with the denoiser and the energy as they are; it occurs with probability
    1 - alpha_t. Hence

        sum_l bracket_l * integral_0^1 w(t) (1 - alpha_t) dt,    the integral of -alpha'_t, which is 1,

    and bracket_l = -log p_AR(x^l | x^<l): for any denoiser, the estimator of `coar` is the perplexity of the
    autoregressive model inside its energy (docs/mathematics.md 5.2). Costs one pass of both networks per position.
    """
    if not energy.additive:
        raise ValueError(f"{type(energy).__name__} is not additive over masks, as `coar` is; use paper_estimate")
    brackets = torch.stack([_brackets(text, denoiser, energy).sum() for text in x0]).cpu()
    return Estimate(brackets * mean_masked_weight(schedule), draws=1)


def _brackets(text: Int[Tensor, " l"], denoiser: AnyDenoiser, energy: AbstractEnergy) -> Float64[Tensor, " l"]:
    """Compute -log p_theta + E of the text for each position masked alone; row l of the batch masks position l."""
    length = len(text)
    single = torch.eye(length, dtype=torch.bool, device=text.device)
    x0 = text.expand(length, -1)
    xt = torch.where(single, denoiser.mask, x0)
    t = torch.full((length,), 1 / length, dtype=torch.float64, device=text.device)
    context, log_p = denoiser.read(xt, t), torch.zeros(length, dtype=torch.float64, device=text.device)
    for chunk in chunks(single, denoiser.vocabulary):
        rows, positions = torch.nonzero(chunk, as_tuple=True)
        log_p[rows] = denoiser.log_p(context, chunk).gather(-1, text[positions, None])[:, 0].double()
    energies = energy(x0[:, None], xt, t, log_p[:, None, None], context)[:, 0, 0]
    return equations.paper_integrand(log_p, energies.double(), torch.zeros_like(log_p), torch.ones_like(log_p))


def mean_masked_weight(schedule: AbstractSchedule) -> float:
    """Integrate w(t) (1 - alpha_t) over (0, 1), by quadrature of the schedule's own functions; 1 for every schedule.

    Tanh-sinh quadrature (Takahasi and Mori 1974): the nodes cluster at both ends, where -alpha'_t may be singular.
    """
    u = torch.linspace(-4.5, 4.5, 501, dtype=torch.float64)
    t = torch.sigmoid(math.pi * torch.sinh(u))
    density = math.pi * torch.cosh(u) * t * (1 - t) * (u[1] - u[0])
    return (schedule.weight(t) * (1 - schedule.alpha(t)) * density).sum().item()
