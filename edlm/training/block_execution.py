"""Execution of a network's blocks in training: activation checkpointing and compilation."""

import functools
import importlib.util
import os
import shutil

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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


def require_compiler(device: torch.device) -> None:
    """Raise ConfigurationError, which says what to do, unless torch.compile finds what it needs on this machine."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigurationError("compiled: there is no Triton for this GPU; install it, or set compiled: false")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise ConfigurationError(
            f"compiled: there is no C++ compiler {compiler!r} on this machine; install one (Debian: apt-get install "
            "g++), name it in the variable CXX, or set compiled: false"
        )
