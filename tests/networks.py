"""Tiny networks with weights that are not zero, for tests."""

import torch
from torch import nn

from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig

TRUNK = TransformerConfig(width=16, layers=2, heads=2)


def stirred(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """The module with weights drawn anew from `seed`: fresh networks output zeros, which would hide most faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if "norm" in name and parameter.dim() == 1 else 0.0
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def denoiser(vocabulary: int = 5, trunk: TransformerConfig = TRUNK) -> Denoiser:
    return stirred(Denoiser(trunk, vocabulary), seed=1)


def autoregressive(vocabulary: int = 5) -> AutoregressiveModel:
    return stirred(AutoregressiveModel(TRUNK, vocabulary), seed=2)
