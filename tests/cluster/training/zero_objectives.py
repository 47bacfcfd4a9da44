"""Objectives that two workers of `test_deepspeed_engine` train under ZeRO, and their rows."""

from typing import Any

import torch

from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.huggingface.lora import LowRankAdaptation, with_adapters
from edlm.interfaces import Model
from edlm.published.mdlm import MDLMDenoiserConfig
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import ConditionalLikelihoodObjective, ContrastiveObjective
from edlm.training.objectives import Denoising, NextToken
from tests.networks import autoregressive, denoiser, stirred

VOCABULARY, LENGTH = 5, 12
PUBLISHED: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "conditioning_width": 16}


def objectives() -> dict:
    """Every objective by name, built anew from fixed weights."""

    def contrastive(config, loss):
        net = denoiser(VOCABULARY)
        return ContrastiveObjective(Model(net, stirred(config.build(net, None), 3), LogLinear()), 3, loss, 0)

    def conditioning():
        net = denoiser(VOCABULARY)
        return ConditionalLikelihoodObjective(
            Model(net, stirred(ConditionalEnergyConfig(width=16, layers=1).build(net, None), 3), LogLinear()), 0
        )

    def residual():
        net = denoiser(VOCABULARY)
        on = stirred(ConditionalEnergyConfig(width=16, layers=1).build(net), 5)
        return ContrastiveObjective(
            Model(net, stirred(ResidualEnergyConfig(width=16).build(net, on), 3), LogLinear()), 3, "ranking", 0
        )

    return {
        "denoising": lambda: Denoising(denoiser(VOCABULARY), LogLinear(), 0),
        "published denoising": lambda: Denoising(
            stirred(MDLMDenoiserConfig(**PUBLISHED).build(VOCABULARY), 1), LogLinear(), 0
        ),
        "next token": lambda: NextToken(autoregressive(VOCABULARY)),
        "step": lambda: contrastive(StepEnergyConfig(block=4, width=16), "ranking"),
        "bidirectional": lambda: contrastive(BidirectionalEnergyConfig(), "binary"),
        "edlm_nce": lambda: contrastive(EDLMEnergyConfig(**PUBLISHED), "binary"),
        "conditional": conditioning,
        "residual": residual,
    }


def adapted(dropout: float = 0.0) -> Denoising:
    """The objective that trains the adapters of a network of transformers alone."""
    from tests.huggingface.networks import bert_denoiser  # here, because it needs the extra `hf`

    network = bert_denoiser(VOCABULARY)
    torch.manual_seed(1)
    return Denoising(with_adapters(network, LowRankAdaptation(rank=2, dropout=dropout)), LogLinear(), 0)


def science_rows(step: int, start: int, stop: int) -> Rows:
    tokens = torch.randint(VOCABULARY, (8, LENGTH), generator=torch.Generator().manual_seed(step))
    return Rows(tokens[start:stop], step, torch.arange(start, stop), 8)


def uneven_rows(step: int, start: int, stop: int) -> Rows:
    """Rows of which nothing is masked on the first of two workers, on the second, on both, or on none, in turn."""
    whole, masked = science_rows(step, 0, 8), torch.ones(8, LENGTH, dtype=torch.bool)
    masked[[slice(0, 5), slice(4, 8), slice(0, 8), slice(0, 0)][step % 4]] = False
    return Rows(whole.tokens[start:stop], step, torch.arange(start, stop), 8, masked[start:stop])
