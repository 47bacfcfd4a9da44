"""Energies of data and of drafts at the same x_t: what noise contrastive estimation tells apart."""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AnyDenoiser, AnyEnergy, proposal_of
from edlm.models.readout import chunks
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import propose, propose_from
from edlm.schedule import AbstractSchedule


@torch.no_grad()
def energies_of_pairs(
    x0: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    energy: AnyEnergy,
    schedule: AbstractSchedule,
    seed: int,
    draws: int,
    times: tuple[float, float],
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """E of x_0 and of one draft of each x_t, summed over groups, at `draws` stratified times of every sequence.

    `times` are (from, to). The draft comes from p_theta, or from the energy's proposal; everything masked is new.
    """
    rows = torch.arange(len(x0), device=x0.device)
    data, drafts = [], []
    low, high = times
    for i in range(draws):
        t = low + (high - low) * ((uniforms(seed, 0, rows, Purpose.TIME) + i / draws) % 1.0)
        u = uniforms(seed, i, rows, Purpose.MASK, (x0.shape[1],))
        xt = equations.noise(x0, schedule.alpha(t), u, denoiser.mask)
        context, masked = denoiser.read(xt, t), xt == denoiser.mask
        u = uniforms(seed, i, rows, Purpose.NEGATIVE, (1, x0.shape[1]))
        if (proposal := proposal_of(energy)) is not None:
            draft, _ = propose_from(proposal, context, xt, masked, u)
            x = torch.cat([x0[:, None], draft], dim=1)
            log_p = proposal.log_p(x, xt, context)[..., None]
        else:
            draft, of_draft = propose(denoiser, context, xt, masked, u)
            x = torch.cat([x0[:, None], draft], dim=1)
            of_data = torch.zeros_like(of_draft)
            for chunk in chunks(masked, denoiser.vocabulary):
                at = torch.nonzero(chunk, as_tuple=True)
                of_data[at[0], 0, at[1]] = (
                    denoiser.log_p(context, chunk).gather(-1, x0[chunk][:, None])[:, 0].to(of_data.dtype)
                )
            log_p = equations.sum_by_group(torch.cat([of_data, of_draft], dim=1), energy.block)
        both = energy(x, xt, t, log_p, context).double().sum(dim=-1)
        data.append(both[:, 0].cpu())
        drafts.append(both[:, 1].cpu())
    return torch.cat(data), torch.cat(drafts)
