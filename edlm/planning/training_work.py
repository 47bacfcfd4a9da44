"""Work of a training step: parameters, FLOP, and what is kept for the backward pass, of networks without weights."""

from dataclasses import dataclass, replace

from torch import nn

from edlm.energies.conditional import ConditionalEnergy
from edlm.energies.residual import ResidualEnergy
from edlm.energies.step import StepEnergy
from edlm.energies.whole_sequence import BidirectionalEnergy
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.gather import most_positions
from edlm.models.transformer import TransformerConfig
from edlm.planning.training_memory import LOGIT_SUMMED, LOGIT_TRAINED, TrainingWork, logit_drawn
from edlm.schedule import AbstractSchedule
from edlm.training.energy_objectives import ConditionalLikelihoodObjective, ContrastiveObjective
from edlm.training.flops import expected_flop, masked_share
from edlm.training.interfaces import Objective
from edlm.training.objectives import Denoising, NextToken
from edlm.training.optimizers import block_matrices

KEPT = 18  # widths per position and layer that the backward pass reads (docs/scaling.md lists them)
KEPT_DROPOUT = 1  # more, with dropout: two masks of a byte per element
KEPT_TIME = 4  # more, with time conditioning: what scale and gate multiply
KEPT_AROUND = 1  # widths per position outside of the layers: what the last norm reads
GRADIENT = 4  # widths per position of the largest gradient, of an MLP's hidden layer, beside all that is kept
MASK = 0.5  # elements per pair of positions of a mask of documents, a byte, beside those that attention makes of it
FORWARD = 12  # widths per position of a pass that keeps nothing, at its widest point

Masked = Denoising | NextToken | ContrastiveObjective | ConditionalLikelihoodObjective


@dataclass(frozen=True)
class Kept:
    """Elements of one row that are in memory at once, with the meaning of `TrainingWork`."""

    activations: float
    logits: float
    logit_bytes: int = LOGIT_SUMMED
    padding_rows: float = 0.0
    frozen_pass: float = 0.0
    drawn: float = 0.0
    drawn_bytes: int = LOGIT_SUMMED


def training_work(objective: Objective, batch: int, length: int) -> TrainingWork | None:
    """Return the work of a step of `batch` rows; None for networks that this module does not know.

    FLOP are those of the mean step. What is in memory is that of the largest step of a run: of an energy that reads new
    positions, one in which all are new. The objective may lie on torch's meta device, where a network takes no memory.
    """
    assert isinstance(objective, nn.Module)
    flop = expected_flop(objective, batch, length)
    kept, checkpointed = (_kept(objective, length, again) for again in (False, True))
    if flop is None or kept is None or checkpointed is None:
        return None
    trained = sum(p.numel() for p in objective.trained.parameters() if p.requires_grad)
    frozen = sum(parameter.numel() for parameter in objective.parameters()) - trained
    matrices = sum(matrix.numel() for matrix in block_matrices(objective.trained).values())
    memory = {**vars(kept), "checkpointed": checkpointed.activations}
    return TrainingWork(trained, matrices, frozen, flop, vocabulary=_vocabulary(objective), **memory)


def _kept(objective: nn.Module, length: int, again: bool) -> Kept | None:
    """Return what one row takes; None for unknown networks. `again`: blocks are computed again in the backward pass."""
    match objective:
        case Denoising(trained=Denoiser() as denoiser, schedule=schedule):
            kept = transformer_kept(denoiser.config, length, again) + _masks(objective, denoiser.config, length, again)
            return Kept(kept, masked(schedule, length))
        case NextToken(trained=AutoregressiveModel() as model):
            kept = transformer_kept(model.config, length, again) + _masks(objective, model.config, length, again)
            return Kept(kept, length)
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=BidirectionalEnergy()):
            pair = (1 + GRADIENT) * length * denoiser.width  # an embedded text
            kept = (1 + objective.negatives) * (transformer_kept(denoiser.config, length, again) + pair)
            frozen_pass = _forward(objective, denoiser, length)
            drawn, drawn_bytes = masked(objective.schedule, length), logit_drawn(denoiser.vocabulary)
            return Kept(kept, 0, drawn=drawn, drawn_bytes=drawn_bytes, frozen_pass=frozen_pass)
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=StepEnergy() as energy):
            return _step_kept(objective, denoiser, energy, length, again)
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=ResidualEnergy() as energy):
            assert isinstance(energy.proposal, ConditionalEnergy)
            width = energy.proposal.features.out_features
            proposed = (1 + objective.negatives) * length * (FORWARD * width + 3 * denoiser.width)  # with its context
            kept = _step_kept(objective, denoiser, energy.head, length, again)
            scored = (1 + objective.negatives) * length  # all at once; they are drawn position by position
            frozen_pass = max(kept.frozen_pass, proposed)
            return replace(kept, drawn=scored, drawn_bytes=LOGIT_SUMMED, frozen_pass=frozen_pass)
        case ConditionalLikelihoodObjective(denoiser=Denoiser() as denoiser, trained=ConditionalEnergy() as energy):
            positions, padding = most_positions(length, None)
            context = (length + 3 * positions) * denoiser.width  # also corrected, and without padding
            kept = _head_kept(energy, positions, again) + context
            return Kept(kept, length, LOGIT_TRAINED, padding / positions, _forward(objective, denoiser, length))
    return None


def _vocabulary(objective: nn.Module) -> int:
    network = objective.trained if isinstance(objective, (Denoising, NextToken)) else objective.denoiser
    assert isinstance(network, (Denoiser, AutoregressiveModel))
    return network.vocabulary


def transformer_kept(config: TransformerConfig, positions: float, again: bool = False) -> float:
    """Return the elements that the backward pass of a transformer over so many positions reads.

    `again`: blocks are computed again in the backward pass (activation checkpointing).
    """
    layer = KEPT + KEPT_DROPOUT * (config.dropout > 0) + KEPT_TIME * config.time_conditioning
    return positions * config.width * (_layers_kept(config.layers, layer, again) + KEPT_AROUND)


def masked(schedule: AbstractSchedule, length: int) -> float:
    """Return the expected number of masked positions of a row."""
    return masked_share(schedule) * length


def _layers_kept(layers: int, layer: int, again: bool) -> int:
    """Return widths per position of all layers: of those that are computed again the inputs, and one as a whole."""
    return layers + layer if again else layers * layer


def _head_kept(energy: StepEnergy | ConditionalEnergy, positions: int, again: bool) -> float:
    """Return the elements of the head over so many positions of one candidate, with those of its largest gradient."""
    around = KEPT_AROUND + 1 + 2 / next(iter(energy.layers)).heads  # also what the output reads, and rotary angles
    layers = _layers_kept(len(energy.layers), KEPT, again)
    return positions * energy.features.out_features * (layers + around + GRADIENT)


def _step_kept(
    objective: ContrastiveObjective, denoiser: Denoiser, energy: StepEnergy, length: int, again: bool
) -> Kept:
    positions, padding = most_positions(length, energy.block)
    context = (length + positions) * denoiser.width  # all of it, and what is gathered of it
    kept = (1 + objective.negatives) * _head_kept(energy, positions, again) + context
    frozen_pass = _forward(objective, denoiser, length)
    drawn_bytes = logit_drawn(denoiser.vocabulary)
    return Kept(kept, 0, LOGIT_SUMMED, padding / positions, frozen_pass, drawn=length, drawn_bytes=drawn_bytes)


def _masks(objective: Masked, config: TransformerConfig, length: int, again: bool) -> float:
    """Return the elements of the masks of documents: for each layer that keeps anything, attention makes its own."""
    return 0.0 if objective.separator is None else length**2 * ((1 if again else config.layers) + MASK)


def _forward(objective: Masked, denoiser: Denoiser, length: int) -> float:
    """Return the elements of a pass that keeps nothing."""
    return FORWARD * length * denoiser.width + _masks(objective, denoiser.config, length, again=True)
