"""Objectives of the energies' training stages, built on every worker; imports little beyond `edlm`, to start fast."""

import torch

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import open_denoiser
from edlm.storage import local_copy
from edlm.training.energy_objectives import Conditioning, Contrastive, energy_objective
from workflows.experiment import Finetune


def finetune_objective(entry: Finetune, denoiser: str, base: str | None, seed: int) -> Contrastive | Conditioning:
    """Build the objective of one energy against the denoiser at a URI; fresh weights depend on the seed alone.

    `base` is the URI of the energy that this one is built on, if any.
    """
    opened = open_denoiser(local_copy(denoiser))
    base_energy = None if base is None else open_energy(local_copy(base), opened)
    torch.manual_seed(seed)
    energy = entry.energy.build(opened.network, base_energy)
    return energy_objective(
        opened.network, energy, opened.schedule, entry.negatives, entry.loss, seed, entry.largest_grid
    )
