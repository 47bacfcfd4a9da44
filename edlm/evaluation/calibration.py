"""Energies of data and of proposal samples at the same x_t: the classes that noise contrastive estimation separates."""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, proposal_of
from edlm.models.readout import chunks
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import propose, propose_from


@torch.no_grad()
def energies_of_pairs(
    x0: Int[Tensor, "b l"],
    model: Model[AnyDenoiser, AnyEnergy],
    seed: int,
    draws: int,
    times: tuple[float, float],
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Return the energies of x_0 and of one sample per x_t, summed over groups: `(data, samples)`.

    Every sequence is noised at `draws` stratified times within `times`, which are (from, to). The sample fills all
    masked positions and comes from p_theta, or from the energy's proposal.
    """
    denoiser, energy = model.denoiser, model.energy
    rows = torch.arange(len(x0), device=x0.device)
    data, samples = [], []
    low, high = times
    for i in range(draws):
        t = low + (high - low) * ((uniforms(seed, 0, rows, Purpose.TIME) + i / draws) % 1.0)
        u = uniforms(seed, i, rows, Purpose.MASK, (x0.shape[1],))
        xt = equations.noise(x0, model.schedule.alpha(t), u, denoiser.mask)
        context, masked = denoiser.read(xt, t), xt == denoiser.mask
        u = uniforms(seed, i, rows, Purpose.NEGATIVE, (1, x0.shape[1]))
        if (proposal := proposal_of(energy)) is not None:
            sample, _ = propose_from(proposal, context, xt, masked, u)
            x = torch.cat([x0[:, None], sample], dim=1)
            log_p = proposal.log_p(x, xt, context)[..., None]
        else:
            sample, log_p_sample = propose(denoiser, context, xt, masked, u)
            x = torch.cat([x0[:, None], sample], dim=1)
            log_p_data = torch.zeros_like(log_p_sample)
            for chunk in chunks(masked, denoiser.vocabulary):
                index = torch.nonzero(chunk, as_tuple=True)
                log_p_data[index[0], 0, index[1]] = (
                    denoiser.log_p(context, chunk).gather(-1, x0[chunk][:, None])[:, 0].to(log_p_data.dtype)
                )
            log_p = equations.sum_by_group(torch.cat([log_p_data, log_p_sample], dim=1), energy.block)
        energies = energy(x, xt, t, log_p, context).double().sum(dim=-1)
        data.append(energies[:, 0].cpu())
        samples.append(energies[:, 1].cpu())
    return torch.cat(data), torch.cat(samples)
