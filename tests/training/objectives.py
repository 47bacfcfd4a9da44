"""Every objective of training around small networks, and rows for them."""

import itertools
from dataclasses import replace
from functools import partial

import torch

from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import Model
from edlm.schedule import Cosine, LogLinear
from edlm.training.energy_objectives import (
    ContrastiveObjective,
    energy_objective,
)
from edlm.training.objectives import Denoising, NextToken
from tests.networks import KINDS, autoregressive, base_of, denoiser, stirred

V, L, N = 5, 12, 24


def rows(start: int = 0, stop: int = N, step: int = 3) -> Rows:
    """A part of the global batch of a step."""
    tokens = torch.randint(V, (N, L), generator=torch.Generator().manual_seed(7))
    return Rows(tokens=tokens[start:stop], step=step, batch_index=torch.arange(start, stop), global_batch_size=N)


def contrastive(config, loss="ranking", negatives=3):
    net = denoiser(V)
    energy = stirred(config.build(net, base_of(config, net)), seed=3)
    return ContrastiveObjective(Model(net, energy, LogLinear()), negatives, loss, seed=0)


def of_kind(config):
    """The objective that trains an energy of this configuration."""
    net = denoiser(V)
    energy = stirred(config.build(net, base_of(config, net)), seed=3)
    return energy_objective(Model(net, energy, LogLinear()), negatives=3, loss="ranking", seed=0)


OBJECTIVES = {
    "denoising": lambda: Denoising(denoiser(V), Cosine(), seed=0),
    "next token": lambda: NextToken(autoregressive(V)),
    "step": lambda: contrastive(StepEnergyConfig(block=4, width=16)),
    "step whole, binary": lambda: contrastive(StepEnergyConfig(block=None, width=16), "binary"),
    "bidirectional": lambda: contrastive(BidirectionalEnergyConfig(), "binary"),
    "residual": lambda: contrastive(ResidualEnergyConfig(width=16)),
    "conditional": lambda: of_kind(ConditionalEnergyConfig(width=16)),
} | {f"kind {name}": partial(of_kind, config) for name, config in KINDS.items() if config.trained}
"""Every objective by its name, to be built by a call."""

SEPARATOR = 2


def documents_alone():
    """Every document of every row, with the row's index."""
    for i, row in enumerate(rows().tokens):
        ends = [j + 1 for j, token in enumerate(row.tolist()) if token == SEPARATOR]
        for start, end in itertools.pairwise(sorted({0, *ends, L})):
            yield i, slice(start, end)


AT = torch.arange(L)

LOSS_MASK = (torch.arange(N)[:, None] % 5 <= AT) & (AT < L - 2)


def answers() -> Rows:
    """Rows of which a prompt at the beginning is given, and a stretch at the end."""
    return replace(rows(), loss_mask=LOSS_MASK)
