"""Objectives of the energies' training stages, built on every worker; imports little beyond `edlm`, to start fast."""

import torch

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import open_denoiser
from edlm.energies.conditional import ConditionalEnergy
from edlm.storage import local_copy
from edlm.training.energy_objectives import Conditioning, Contrastive
from workflows.experiment import Finetune


def contrasting(one: Finetune, denoiser: str, proposal: str | None, seed: int) -> Contrastive | Conditioning:
    """Build the objective of one energy against the denoiser at a URI; fresh weights depend on the seed alone.

    `proposal` is the URI of the conditional energy that proposes the candidates of a residual energy.
    """
    base = open_denoiser(local_copy(denoiser))
    proposal_energy = None if proposal is None else open_energy(local_copy(proposal), base)
    assert proposal_energy is None or isinstance(proposal_energy, ConditionalEnergy)
    torch.manual_seed(seed)
    energy = one.energy.build(base.network, proposal_energy)
    if isinstance(energy, ConditionalEnergy):
        return Conditioning(base.network, energy, base.schedule, seed, one.largest_grid)
    return Contrastive(base.network, energy, base.schedule, one.negatives, one.loss, seed, one.largest_grid)
