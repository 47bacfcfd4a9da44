"""Execution of a network's blocks in training: activation checkpointing and compilation."""

import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from edlm.compilers import require_compiler
from edlm.config import ConfigurationError
from edlm.models.transformer import Block
from edlm.training.settings import Training


def prepare_blocks(network: nn.Module, training: Training, device: torch.device) -> None:
    """Let the blocks of a network, which is to compute on `device`, compute as the settings say, in place.

    Raise ConfigurationError if it has none, or if they are to be compiled where there is no compiler.
    """
    chosen = [name for name in ("activation_checkpointing", "compiled") if getattr(training, name)]
    if not chosen:
        return
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    if not blocks:
        raise ConfigurationError(
            f"{' and '.join(chosen)}: {type(network).__name__} has no transformer blocks of this project; leave it out"
        )
    if training.compiled:
        require_compiler(device)
    for block in blocks:
        # `at` is the pass of a last layer, which is not reached through `__call__`.
        for name in ("forward", "at"):
            compute = getattr(block, name)
            if training.compiled:
                compute = torch.compile(compute, dynamic=True)
            if training.activation_checkpointing:
                compute = functools.partial(checkpoint, compute, use_reentrant=False)
            setattr(block, name, compute)
