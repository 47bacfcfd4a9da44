"""Tiny networks with weights that are not zero, for tests."""

from typing import get_args

import torch
from torch import nn

from edlm.energies.configuration import AbstractEnergyConfig
from edlm.energies.kinds import EnergyConfig
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig

TRANSFORMER = TransformerConfig(width=16, layers=2, heads=2)
SIZE = {"width": 32, "layers": 2, "heads": 4, "conditioning_width": 16}
KINDS = {
    kind.kind: kind(**{name: size for name, size in SIZE.items() if name in kind.__dataclass_fields__})
    for kind in get_args(EnergyConfig)
}
"""Every energy of the union with its default settings but for its size: a new one takes part in every test of them."""


def stirred(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """The module with weights drawn anew from `seed`: fresh networks output zeros, which would hide most faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if "norm" in name and parameter.dim() == 1 else 0.0
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def denoiser(vocabulary: int = 5, transformer: TransformerConfig = TRANSFORMER) -> Denoiser:
    return stirred(Denoiser(transformer, vocabulary), seed=1)


def autoregressive(vocabulary: int = 5) -> AutoregressiveModel:
    return stirred(AutoregressiveModel(TRANSFORMER, vocabulary), seed=2)


def base_of(config: AbstractEnergyConfig, net: Denoiser) -> nn.Module | None:
    """The model that an energy is built on, if it needs one, with stirred weights."""
    if config.needs_autoregressive:
        return autoregressive(net.vocabulary)
    if not config.needs_energy:
        return None
    other = next(other for other in KINDS.values() if config.accepts(other))
    return stirred(other.build(net, base_of(other, net)), seed=5)
