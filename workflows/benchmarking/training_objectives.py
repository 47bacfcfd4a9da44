"""Objectives of the training benchmark at one size, untrained, and the plain loss of each that has been published."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edlm.baselines.published_training import PlainContrastive, PlainDenoising, PlainNextToken
from edlm.config import Positive, config
from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import Model
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import energy_objective
from edlm.training.objectives import Denoising, NextToken
from workflows.benchmarking.sampling import BLOCK, LIGHT_HEADS, SCALE

DENOISER, AUTOREGRESSIVE, WHOLE = "denoiser", "autoregressive model", "NCE, whole sequences"
STEP, CONDITIONAL = f"step energy, blocks of {BLOCK}", "conditional energy"


@config
class NetworkSizes:
    """Sizes of the untrained networks, and the rows of a step."""

    width: Positive = 256
    """Channels per position of denoiser, autoregressive model and the energy of whole sequences."""
    layers: Positive = 4
    """Layers of these."""
    heads: Positive = 4
    """Attention heads per layer of these, of `width` / `heads` channels each; the light heads have four."""
    head_width: Positive = 128
    """Width of the light heads of step and conditional energies, which have one layer."""
    negatives: Positive = 1
    """Negatives per row of noise contrastive estimation, K."""
    tokens: Positive = 2048
    """Tokens per step and process: so many divided by L are its rows."""
    seed: int = 0
    """Seed of the untrained weights, the rows and the noise."""

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(width=self.width, layers=self.layers, heads=self.heads)

    def rows(self, length: int) -> int:
        return max(1, self.tokens // length)


def denoising(sizes: NetworkSizes, vocabulary: int) -> Denoising:
    return Denoising(_denoiser(sizes, vocabulary), LogLinear(), sizes.seed)


def next_token(sizes: NetworkSizes, vocabulary: int) -> NextToken:
    torch.manual_seed(sizes.seed)
    return NextToken(_with_head(AutoregressiveModel(sizes.transformer, vocabulary)))


def whole_sequences(sizes: NetworkSizes, vocabulary: int) -> nn.Module:
    return _energy(BidirectionalEnergyConfig(), sizes, vocabulary)


def step_energy(sizes: NetworkSizes, vocabulary: int) -> nn.Module:
    return _energy(StepEnergyConfig(block=BLOCK, width=sizes.head_width, heads=LIGHT_HEADS), sizes, vocabulary)


def conditional_energy(sizes: NetworkSizes, vocabulary: int) -> nn.Module:
    return _energy(ConditionalEnergyConfig(width=sizes.head_width, layers=1, heads=LIGHT_HEADS), sizes, vocabulary)


OBJECTIVES: Mapping[str, Callable[[NetworkSizes, int], Any]] = {
    DENOISER: denoising,
    AUTOREGRESSIVE: next_token,
    WHOLE: whole_sequences,
    STEP: step_energy,
    CONDITIONAL: conditional_energy,
}
"""Functions of sizes and |V|; their values are `Objective`s with the same weights for the same seed."""

PLAIN: Mapping[str, Callable[[Any, torch.Generator], Callable[[Tensor], Tensor]]] = {
    DENOISER: lambda ours, generator: PlainDenoising(ours.trained, ours.schedule, generator),
    AUTOREGRESSIVE: lambda ours, _: PlainNextToken(ours.trained),
    WHOLE: lambda ours, generator: PlainContrastive(
        ours.denoiser, ours.trained, ours.schedule, ours.negatives, generator
    ),
}
"""Plain losses with the networks of an objective; light heads have not been published."""


class RandomRows:
    """Rows of random tokens, the same in every step."""

    def __init__(self, sizes: NetworkSizes, vocabulary: int, length: int, workers: int = 1) -> None:
        self.batch = workers * sizes.rows(length)
        generator = torch.Generator().manual_seed(sizes.seed)
        self.tokens = torch.randint(vocabulary, (self.batch, length), generator=generator)

    def __call__(self, step: int, start: int, stop: int) -> Rows:
        return Rows(self.tokens[start:stop], step, torch.arange(start, stop), self.batch)


def _denoiser(sizes: NetworkSizes, vocabulary: int) -> Denoiser:
    torch.manual_seed(sizes.seed)
    return _with_head(Denoiser(sizes.transformer, vocabulary))


def _with_head(network: Any) -> Any:
    """Draw the LM head's weight, which would otherwise give every token exactly the same probability."""
    nn.init.normal_(network.readout.weight, std=SCALE)
    return network


def _energy(kind: AbstractEnergyConfig, sizes: NetworkSizes, vocabulary: int) -> nn.Module:
    denoiser = _denoiser(sizes, vocabulary)
    model = Model(denoiser, kind.build(denoiser), LogLinear())
    return energy_objective(model, sizes.negatives, "binary", sizes.seed)
