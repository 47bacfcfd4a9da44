"""The paper's estimator of the likelihood, which is not a bound (docs/mathematics.md 5.2)."""

import torch
from jaxtyping import Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, NormalisedEnergy
from edlm.likelihood.bounds import log_p_of, noise_sample
from edlm.likelihood.estimate import Estimate
from edlm.likelihood.log_partition import log_partition_ends
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
        t, xt = noise_sample(x0, denoiser, schedule, seed, i, draws)
        context, masked = denoiser.read(xt, t), xt == denoiser.mask
        log_p = log_p_of(denoiser, context, masked, x0).sum(dim=-1)
        e = energy(x0[:, None], xt, t, log_p[:, None, None], context).sum(dim=-1)[:, 0].double()
        if log_partition_draws is None:
            log_z = torch.zeros_like(log_p)
        else:
            log_z, _ = log_partition_ends(xt, t, context, model, seed, i, log_partition_draws)
        total += equations.paper_integrand(log_p, e, log_z, schedule.weight(t)).cpu()
    return Estimate(total / draws, draws)
