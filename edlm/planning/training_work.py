"""Work of a training step: parameters, FLOP, and what is kept for the backward pass, of networks without weights."""

from torch import nn

from edlm.energies.conditional import ConditionalEnergy
from edlm.energies.step import StepEnergy
from edlm.energies.whole_sequence import BidirectionalEnergy
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.planning.training_memory import TrainingWork
from edlm.schedule import AbstractSchedule
from edlm.training.energy_objectives import ConditionalLikelihoodObjective, ContrastiveObjective
from edlm.training.flops import expected_flop, masked_share, new_share
from edlm.training.interfaces import Objective
from edlm.training.objectives import Denoising, NextToken
from edlm.training.optimizers import block_matrices

KEPT = 18  # widths per position and layer that the backward pass reads (docs/scaling.md lists them)
KEPT_DROPOUT = 1  # more, with dropout: two masks of a byte per element
KEPT_TIME = 4  # more, with time conditioning: what scale and gate multiply
KEPT_AROUND = 1  # widths per position outside of the layers: what the last norm reads


def training_work(objective: Objective, batch: int, length: int) -> TrainingWork | None:
    """Return the work of a step of `batch` rows; None for networks that this module does not know.

    The objective may lie on torch's meta device, where a network takes no memory.
    """
    assert isinstance(objective, nn.Module)
    flop = expected_flop(objective, batch, length)
    kept, checkpointed = (_kept(objective, length, again) for again in (False, True))
    if flop is None or kept is None or checkpointed is None:
        return None
    activations, logits, vocabulary = kept
    trained = sum(p.numel() for p in objective.trained.parameters() if p.requires_grad)
    total = sum(parameter.numel() for parameter in objective.parameters())
    matrices = sum(matrix.numel() for matrix in block_matrices(objective.trained).values())
    return TrainingWork(trained, matrices, total - trained, flop, activations, checkpointed[0], logits, vocabulary)


def _kept(objective: nn.Module, length: int, again: bool) -> tuple[float, float, int] | None:
    """Return per row the elements kept and the positions with logits, and the vocabulary.

    `again`: blocks are computed again in the backward pass.
    """
    match objective:
        case Denoising(trained=Denoiser() as denoiser, schedule=schedule):
            return transformer_kept(denoiser.config, length, again), masked(schedule, length), denoiser.vocabulary
        case NextToken(trained=AutoregressiveModel() as model):
            return transformer_kept(model.config, length, again), length, model.vocabulary
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=BidirectionalEnergy()):
            kept = (1 + objective.negatives) * transformer_kept(denoiser.config, length, again)
            return kept, masked(objective.schedule, length), denoiser.vocabulary
        case ContrastiveObjective(denoiser=Denoiser() as denoiser, trained=StepEnergy() as energy):
            new = new_share(objective.largest_grid) * length
            return (1 + objective.negatives) * _head_kept(energy, new, again), new, denoiser.vocabulary
        case ConditionalLikelihoodObjective(denoiser=Denoiser() as denoiser, trained=ConditionalEnergy() as energy):
            new = new_share(objective.largest_grid) * length
            return _head_kept(energy, new, again), new, denoiser.vocabulary
    return None


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


def _head_kept(energy: StepEnergy | ConditionalEnergy, positions: float, again: bool) -> float:
    return positions * energy.features.out_features * (_layers_kept(len(energy.layers), KEPT, again) + KEPT_AROUND)
