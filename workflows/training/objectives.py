"""Objectives of the training stages, built on every worker; imports `edlm` only, to start fast."""

import torch

from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import ScheduleConfig
from edlm.training.objectives import Denoising, NextToken


def denoising(network: TransformerConfig, vocabulary: int, schedule: ScheduleConfig, seed: int) -> Denoising:
    """Build the denoiser's objective, with fresh weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return Denoising(Denoiser(network, vocabulary), schedule, seed)


def next_token(network: TransformerConfig, vocabulary: int, seed: int) -> NextToken:
    """Build the autoregressive objective, with fresh weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return NextToken(AutoregressiveModel(network, vocabulary))
