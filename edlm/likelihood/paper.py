"""The paper's estimates, which are not bounds, and low and high estimates of log Z (docs/mathematics.md 5)."""

import torch
from jaxtyping import Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, NormalisedEnergy
from edlm.likelihood.bounds import _log_p_of, _noised
from edlm.likelihood.estimate import Estimate
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import draw_candidates
from edlm.schedule import AbstractSchedule


@torch.no_grad()
def paper_estimate(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    energy: AnyEnergy,
    schedule: AbstractSchedule,
    seed: int,
    draws: int,
    log_partition_draws: int | None,
) -> Estimate:
    """Compute the published estimator E_t[w(t) (-log p_theta + E + log Z)]: NOT a bound (docs/mathematics.md 5.2).

    Defined for whole-sequence energies only. log Z is the log-mean-exp over `log_partition_draws` candidates, which is
    biased low: far too low if the energy is sharp and the candidates are few. None: log Z is known, not estimated; it
    is 0 for a normalised energy, such as `coar`, and unknown for any other.
    """
    if not energy.whole_sequence:
        raise ValueError(
            f"{type(energy).__name__} scores the tokens of a step; "
            "the paper's estimator needs an energy of whole sequences"
        )
    if log_partition_draws is None and not isinstance(energy, NormalisedEnergy):
        raise ValueError(f"log Z of {type(energy).__name__} is not known; give log_partition_draws >= 2")
    model, total = Model(denoiser, energy, schedule), torch.zeros(len(x0), dtype=torch.float64)
    for i in range(draws):
        t, xt = _noised(x0, denoiser, schedule, seed, i, draws)
        context, masked = denoiser.read(xt, t), xt == denoiser.mask
        log_p = _log_p_of(denoiser, context, masked, x0).sum(dim=-1)
        e = energy(x0[:, None], xt, t, log_p[:, None, None], context).sum(dim=-1)[:, 0].double()
        if log_partition_draws is None:
            log_z = torch.zeros_like(log_p)
        else:
            log_z, _ = _log_partition(xt, t, context, model, seed, i, log_partition_draws)
        total += equations.paper_integrand(log_p, e, log_z, schedule.weight(t)).cpu()
    return Estimate(total / draws, draws)


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
        t, xt = _noised(x0, model.denoiser, model.schedule, seed, i, draws)
        ends = _log_partition(xt, t, model.denoiser.read(xt, t), model, seed, i, log_partition_draws)
        low, high = low + ends[0].cpu(), high + ends[1].cpu()
    return Estimate(low / draws, draws), Estimate(high / draws, draws)


def _log_partition(
    xt, t, context, model: Model[AnyDenoiser, AnyEnergy], seed: int, i: int, draws: int
) -> tuple[Tensor, Tensor]:
    """Return the low and high estimates of log Z per sequence, summed over groups."""
    rows = torch.arange(len(xt), device=xt.device)
    u = uniforms(seed, i, rows, Purpose.NEGATIVE, (draws, xt.shape[1]))
    x, log_p = draw_candidates(model.denoiser, model.energy, context, xt, xt == model.denoiser.mask, u)
    e = model.energy(x, xt, t, log_p, context)
    low, high = equations.log_partition(equations.log_weight(e).double().transpose(0, 1))
    return low.sum(dim=-1), high.sum(dim=-1)
