"""Factories of the energies' training objectives, called on every worker; imports little but `edlm`, to start fast."""

import torch
from torch import nn

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import OpenDenoiser, open_autoregressive, open_denoiser
from edlm.interfaces import AbstractEnergy, Model
from edlm.local_copies import local_copy
from edlm.training.energy_objectives import ConditionalLikelihoodObjective, ContrastiveObjective, energy_objective
from workflows.experiment import Finetune
from workflows.training.initial_weights import load_initial


def fresh_energy(entry: Finetune, denoiser: OpenDenoiser, base: str | None, seed: int) -> AbstractEnergy:
    """Build an energy, on the model at the URI `base` if it needs one; fresh weights depend on the seed alone."""
    model: nn.Module | None = None
    if base is not None:
        folder = local_copy(base)
        model = open_autoregressive(folder) if entry.energy.needs_autoregressive else open_energy(folder, denoiser)
    torch.manual_seed(seed)
    return entry.energy.build(denoiser.network, model)


def finetune_objective(
    entry: Finetune, denoiser: str, base: str | None, seed: int, initial: str | None, separator: int | None = None
) -> ContrastiveObjective | ConditionalLikelihoodObjective:
    """Build the objective of one energy against the denoiser at a URI, with the weights at `initial`, if any.

    A `separator` bounds the denoiser's attention.
    """
    opened = open_denoiser(local_copy(denoiser))
    energy = fresh_energy(entry, opened, base, seed)
    load_initial(energy, initial, kept="proposal.")
    model = Model(opened.network, energy, opened.schedule)
    return energy_objective(model, entry.negatives, entry.loss, seed, entry.largest_grid, separator)
