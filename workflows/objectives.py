"""What each training stage optimises, built on every worker; it imports the science alone, to start quickly."""

import torch

from edlm.autoregressive import AutoregressiveModel
from edlm.denoiser import Denoiser
from edlm.energy import ConditionalEnergy
from edlm.models import open_denoiser
from edlm.objective import Conditioning, Contrastive, Denoising, NextToken
from edlm.schedule import ScheduleConfig
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


def contrasting(one: Finetune, denoiser: str, seed: int) -> Contrastive | Conditioning:
    """The objective of one energy against the denoiser at a URI; fresh weights depend on the seed alone."""
    base = open_denoiser(local_copy(denoiser))
    torch.manual_seed(seed)
    energy = one.energy.build(base.network, None)
    if isinstance(energy, ConditionalEnergy):
        return Conditioning(base.network, energy, base.schedule, seed)
    return Contrastive(base.network, energy, base.schedule, one.negatives, one.loss, seed)
