"""Factories of the training objectives, called on every worker; imports `edlm` only, to start fast."""

import torch

from edlm.checkpoints.network_kinds import AutoregressiveConfig, DenoiserConfig
from edlm.schedule import ScheduleConfig
from edlm.training.objectives import Denoising, NextToken
from workflows.training.initial_weights import load_initial


def denoising(
    network: DenoiserConfig,
    vocabulary: int,
    schedule: ScheduleConfig,
    seed: int,
    initial: str | None,
    separator: int | None = None,
) -> Denoising:
    """Build the denoiser's objective with the weights at the URI `initial`, or fresh ones of the seed alone.

    A `separator` bounds attention.
    """
    torch.manual_seed(seed)
    denoiser = network.build(vocabulary)
    load_initial(denoiser, initial)
    return Denoising(denoiser, schedule, seed, separator)


def next_token(
    network: AutoregressiveConfig, vocabulary: int, seed: int, initial: str | None, separator: int | None = None
) -> NextToken:
    """Build the autoregressive objective with the weights at the URI `initial`, or fresh ones of the seed alone.

    A `separator` bounds attention.
    """
    torch.manual_seed(seed)
    model = network.build(vocabulary)
    load_initial(model, initial)
    return NextToken(model, separator)
