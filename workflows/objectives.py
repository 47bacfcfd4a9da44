"""What each training stage optimises, built on every worker; it imports the science alone, to start quickly."""

import torch

from edlm.autoregressive import AutoregressiveModel
from edlm.denoiser import Denoiser
from edlm.models import open_denoiser, open_energy
from edlm.objective import Conditioning, Contrastive, Denoising, NextToken
from edlm.schedule import ScheduleConfig
from edlm.step_energy import ConditionalEnergy
from edlm.storage import local_copy
from edlm.transformer import Trunk
from workflows.experiment import Finetune


def denoising(trunk: Trunk, vocabulary: int, schedule: ScheduleConfig, seed: int) -> Denoising:
    """The objective, with fresh weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return Denoising(Denoiser(trunk, vocabulary), schedule, seed)


def next_token(trunk: Trunk, vocabulary: int, seed: int) -> NextToken:
    """The objective, with fresh weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return NextToken(AutoregressiveModel(trunk, vocabulary))


def contrasting(one: Finetune, denoiser: str, proposal: str | None, seed: int) -> Contrastive | Conditioning:
    """The objective of one energy against the denoiser at a URI; fresh weights depend on the seed alone.

    `proposal` is the URI of the conditional energy that a residual one stands on.
    """
    base = open_denoiser(local_copy(denoiser))
    borrowed = None if proposal is None else open_energy(local_copy(proposal), base)
    assert borrowed is None or isinstance(borrowed, ConditionalEnergy)
    torch.manual_seed(seed)
    energy = one.energy.build(base.network, borrowed)
    if isinstance(energy, ConditionalEnergy):
        return Conditioning(base.network, energy, base.schedule, seed, one.largest_grid)
    return Contrastive(base.network, energy, base.schedule, one.negatives, one.loss, seed, one.largest_grid)
