"""Model FLOP of a training step: floating-point operations that its mathematics requires, for MFU.

A product of an m x k and a k x n matrix counts as 2 m k n, and attention as two products over all pairs of positions,
causal or not. What is computed twice (activation checkpointing, projections of a token that recurs in a small
vocabulary), for padding, or at positions that the loss does not read, does not count, whether or not a device saves
it; nor does the optimizer's step, Muon's products of matrices included. MFU is model FLOP per second divided by the
FLOP per second of the device (Chowdhery et al. 2022, appendix B).
"""

import math

import torch
from torch import nn

from edlm.energies.conditional import ConditionalEnergy
from edlm.energies.residual import ResidualEnergy
from edlm.energies.step import StepEnergy
from edlm.energies.whole_sequence import BidirectionalEnergy
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.repeated_tokens import recur
from edlm.models.transformer import TransformerConfig
from edlm.schedule import AbstractSchedule
from edlm.training.energy_objectives import ConditionalLikelihoodObjective, ContrastiveObjective
from edlm.training.objectives import Denoising, NextToken

TRAINED = 3  # forward, gradient of the input, gradient of the weight
FROZEN_WEIGHT = 2  # forward and gradient of the input; of a frozen input, forward and gradient of the weight
TIMES = 1000  # that a schedule is averaged over


def transformer_flop(config: TransformerConfig, positions: int, length: int) -> int:
    """Return the FLOP of a forward pass over `positions` of rows of `length`."""
    return _layers_flop(config.width, config.layers, positions, length)


def denoiser_flop(denoiser: Denoiser, positions: int, length: int, read: int) -> int:
    """Return the FLOP of a forward pass in training (`Transformer.at`), and of the logits at the positions it reads.

    The last layer needs keys and values everywhere and the rest only there; the first projects each token once if they
    recur.
    """
    config, width = denoiser.config, denoiser.width
    unread = positions - read
    needless = _layers_flop(width, 1, unread, length) - 4 * width**2 * unread
    tokens = denoiser.vocabulary + 1
    if recur(positions, tokens) and config.layers > 1 and not config.time_conditioning:
        needless += 6 * width**2 * (positions - tokens)
    logits = head_flop(width, denoiser.vocabulary, read)
    return transformer_flop(config, positions, length) - needless + logits


def _layers_flop(width: int, layers: int, positions: int, attended: float) -> int:
    """Per position and layer: queries, keys and values, output projection and MLP, and attention."""
    return round(layers * positions * (24 * width**2 + 4 * attended * width))


def head_flop(width: int, vocabulary: int, positions: int) -> int:
    """Return the FLOP of the logits at so many positions."""
    return 2 * width * vocabulary * positions


def denoising_flop(denoiser: Denoiser, rows: int, length: int, masked: int) -> int:
    """Return the FLOP of a training step of a denoiser with `masked` positions in all rows together."""
    return TRAINED * denoiser_flop(denoiser, rows * length, length, masked)


def next_token_flop(model: AutoregressiveModel, rows: int, length: int) -> int:
    """Return the FLOP of a training step of an autoregressive model."""
    positions = rows * length
    forward = transformer_flop(model.config, positions, length)
    return TRAINED * (forward + head_flop(model.config.width, model.vocabulary, positions))


def whole_sequence_flop(denoiser: Denoiser, rows: int, length: int, masked: int, negatives: int) -> int:
    """Return the FLOP of an NCE step of the paper's energy: K negatives at all masked positions, from one pass."""
    positions, width = rows * length, denoiser.width
    pair = 2 * width**2 * positions * (1 + 1 + negatives)  # x_t is projected once for all candidates
    energy = pair + (1 + negatives) * transformer_flop(denoiser.config, positions, length)
    return denoiser_flop(denoiser, positions, length, masked) + TRAINED * energy


def step_flop(denoiser: Denoiser, energy: StepEnergy, rows: int, length: int, new: int, negatives: int) -> int:
    """Return the FLOP of an NCE step of a step energy with `new` positions in all rows together.

    The energy's attention counts as over a whole block.
    """
    width, attended = energy.features.out_features, length if energy.block is None else energy.block
    head = (1 + negatives) * _layers_flop(width, len(energy.layers), new, attended)
    features = FROZEN_WEIGHT * 2 * denoiser.width * width * new
    return denoiser_flop(denoiser, rows * length, length, new) + features + TRAINED * head


def conditional_flop(denoiser: Denoiser, energy: ConditionalEnergy, rows: int, length: int, new: int) -> int:
    """Return the FLOP of a maximum likelihood step of a conditional energy with `new` positions in all rows together.

    Rows count as if they had equally many new positions.
    """
    features, layers, logits = _proposal_flop(denoiser, energy, rows, new)
    step = FROZEN_WEIGHT * (features + logits) + TRAINED * layers
    return denoiser_flop(denoiser, rows * length, length, new) + step


def residual_flop(denoiser: Denoiser, energy: ResidualEnergy, rows: int, length: int, new: int, negatives: int) -> int:
    """Return the FLOP of an NCE step of a residual energy: its proposal draws K negatives, and scores all texts.

    Drawing reads each of the K rows token by token, which counts as one pass over it.
    """
    assert isinstance(energy.proposal, ConditionalEnergy)
    features, layers, logits = _proposal_flop(denoiser, energy.proposal, rows, new)
    drawn, scored = negatives * (features + layers + logits), features + (1 + negatives) * (layers + logits)
    head = step_flop(denoiser, energy.head, rows, length, new, negatives)
    return head - head_flop(denoiser.width, denoiser.vocabulary, new) + drawn + scored  # p_theta itself is not drawn


def _proposal_flop(denoiser: Denoiser, energy: ConditionalEnergy, rows: int, new: int) -> tuple[int, int, int]:
    """Return the FLOP of a conditional energy's pass: of its features, of its layers and correction, of the logits."""
    width = energy.features.out_features
    read = 2 * denoiser.width * width * new  # by each of the projections from and to the denoiser's features
    layers = _layers_flop(width, len(energy.layers), new, new / rows) + read
    return read, layers, head_flop(denoiser.width, denoiser.vocabulary, new)


def expected_flop(objective: nn.Module, rows: int, length: int) -> int | None:
    """Return the mean FLOP of a training step over the noise; None for networks that this module does not know."""
    positions = rows * length
    match objective:
        case Denoising(trained=Denoiser() as denoiser, schedule=schedule):
            return denoising_flop(denoiser, rows, length, round(masked_share(schedule) * positions))
        case NextToken(trained=AutoregressiveModel() as model):
            return next_token_flop(model, rows, length)
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=BidirectionalEnergy()):
            masked = round(masked_share(objective.schedule) * positions)
            return whole_sequence_flop(denoiser, rows, length, masked, objective.negatives)
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=StepEnergy() as energy):
            new = round(new_share(objective.largest_grid) * positions)
            return step_flop(denoiser, energy, rows, length, new, objective.negatives)
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=ResidualEnergy() as energy):
            new = round(new_share(objective.largest_grid) * positions)
            return residual_flop(denoiser, energy, rows, length, new, objective.negatives)
        case ConditionalLikelihoodObjective(denoiser=Denoiser() as denoiser, trained=ConditionalEnergy() as energy):
            return conditional_flop(
                denoiser, energy, rows, length, round(new_share(objective.largest_grid) * positions)
            )
    return None


def masked_share(schedule: AbstractSchedule) -> float:
    """Return the mean of 1 - alpha_t over t ~ U(0, 1)."""
    t = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    return (1 - schedule.alpha(t)).mean().item()


def new_share(largest_grid: int) -> float:
    """Return the mean share of positions that a random step of a random grid unmasks (`draw_step`).

    The steps of a grid of T unmask all positions together, so that one of them unmasks 1 / T on average. T is
    log-uniform in 1..G, rounded: P(T) = log((T + 1/2) / (T - 1/2)) / log G, cut at 1 and G.
    """
    if largest_grid == 1:
        return 1.0
    mean = 0.0
    for steps in range(1, largest_grid + 1):
        low, high = max(1.0, steps - 0.5), min(float(largest_grid), steps + 0.5)
        mean += math.log(high / low) / math.log(largest_grid) / steps
    return mean
