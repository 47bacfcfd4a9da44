"""Factories of the training objectives, called on every worker; imports `edlm` only, to start fast."""

from typing import TypeVar

import torch
from torch import nn

from edlm.checkpoints.network_kinds import AutoregressiveConfig, DenoiserConfig
from edlm.huggingface.lora import LowRankAdaptation, with_adapters
from edlm.schedule import ScheduleConfig
from edlm.training.objectives import Denoising, NextToken
from workflows.training.initial_weights import load_initial

N = TypeVar("N", bound=nn.Module)


def denoising(
    network: DenoiserConfig,
    vocabulary: int,
    schedule: ScheduleConfig,
    seed: int,
    initial: str | None,
    separator: int | None = None,
    lora: LowRankAdaptation | None = None,
) -> Denoising:
    """Build the denoiser's objective with the weights at the URI `initial`, or fresh ones of the seed alone.

    A `separator` bounds attention. With `lora`, fresh adapters alone train, which depend on the seed alone, too.
    """
    torch.manual_seed(seed)
    denoiser = network.build(vocabulary)
    load_initial(denoiser, initial)
    return Denoising(_adapted(denoiser, lora, seed), schedule, seed, separator)


def next_token(
    network: AutoregressiveConfig,
    vocabulary: int,
    seed: int,
    initial: str | None,
    separator: int | None = None,
    lora: LowRankAdaptation | None = None,
) -> NextToken:
    """Build the autoregressive objective with the weights at the URI `initial`, or fresh ones of the seed alone.

    A `separator` bounds attention. With `lora`, fresh adapters alone train, which depend on the seed alone, too.
    """
    torch.manual_seed(seed)
    model = network.build(vocabulary)
    load_initial(model, initial)
    return NextToken(_adapted(model, lora, seed), separator)


def _adapted(network: N, lora: LowRankAdaptation | None, seed: int) -> N:
    if lora is None:
        return network
    torch.manual_seed(seed)
    return with_adapters(network, lora)
