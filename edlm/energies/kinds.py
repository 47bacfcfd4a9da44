"""Configurations of residual energies E(x_0, x_t, t): step energies of this project, whole-sequence ones of the paper.

    p(x | x_t) is proportional to p_theta(x | x_t) exp(-E(x, x_t, t)): LOW energy is likely text.

All energies have one call signature; `whole_sequence` says what they are functions of:
  step energies (`whole_sequence` False) see this step's new tokens and masks elsewhere (`edlm.energies.step`);
  whole-sequence energies (`whole_sequence` True) see every position filled (EDLM sec. 4).
"""

from typing import Literal, TypeVar

from edlm.config import ConfigurationError, NonNegative, Positive, config
from edlm.energies.conditional import ConditionalEnergy
from edlm.energies.residual import ResidualEnergy
from edlm.energies.step import StepEnergy
from edlm.energies.whole_sequence import AutoregressiveEnergy, BidirectionalEnergy, CarryOverEnergy
from edlm.interfaces import AbstractEnergy
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser

Borrowed = AutoregressiveModel | ConditionalEnergy | None
B = TypeVar("B", AutoregressiveModel, ConditionalEnergy)


@config
class Step:
    """Step energy in blocks of neighbouring positions (None: one block, the whole canvas)."""

    kind: Literal["step"] = "step"
    block: Positive | None = 8
    width: Positive = 128
    layers: Positive = 1
    heads: Positive = 4

    def build(self, denoiser: Denoiser, borrowed: Borrowed = None) -> AbstractEnergy:
        return StepEnergy(self.width, self.layers, self.heads, self.block, denoiser)


@config
class Conditional:
    """Normalised step energy: a light causal head on the denoiser's features."""

    kind: Literal["conditional"] = "conditional"
    width: Positive = 128
    layers: Positive = 2
    heads: Positive = 4
    left: Positive = 1
    """Number of tokens to the left of a new one that the head reads directly, known or just drawn."""
    right: NonNegative = 0
    """Number of tokens to the right, as far as they are known."""

    def build(self, denoiser: Denoiser, borrowed: Borrowed = None) -> ConditionalEnergy:
        return ConditionalEnergy(self.width, self.layers, self.heads, self.left, self.right, denoiser)


@config
class Bidirectional:
    """The paper's whole-sequence energy, of the denoiser's size."""

    kind: Literal["bidirectional"] = "bidirectional"

    def build(self, denoiser: Denoiser, borrowed: Borrowed = None) -> AbstractEnergy:
        return BidirectionalEnergy(denoiser)


@config
class Autoregressive:
    """The paper's energy `ar`: no training beyond the autoregressive model."""

    kind: Literal["ar"] = "ar"

    def build(self, denoiser: Denoiser, borrowed: Borrowed = None) -> AbstractEnergy:
        return AutoregressiveEnergy(_needed(AutoregressiveModel, borrowed, self.kind))


@config
class CarryOver:
    """The paper's energy `coar`: no training beyond the autoregressive model."""

    kind: Literal["coar"] = "coar"

    def build(self, denoiser: Denoiser, borrowed: Borrowed = None) -> AbstractEnergy:
        return CarryOverEnergy(_needed(AutoregressiveModel, borrowed, self.kind), denoiser.mask)


@config
class Residual:
    """NCE energy on top of a conditional energy, which is trained first and then proposes the candidates."""

    kind: Literal["residual"] = "residual"
    width: Positive = 128
    layers: Positive = 1
    heads: Positive = 4

    def build(self, denoiser: Denoiser, borrowed: Borrowed = None) -> AbstractEnergy:
        proposal = _needed(ConditionalEnergy, borrowed, self.kind)
        return ResidualEnergy(self.width, self.layers, self.heads, denoiser, proposal)


EnergyConfig = Step | Conditional | Residual | Bidirectional | Autoregressive | CarryOver


def _needed(cls: type[B], model: Borrowed, kind: str) -> B:
    if not isinstance(model, cls):
        source = {AutoregressiveModel: "an autoregressive model", ConditionalEnergy: "a conditional energy"}[cls]
        raise ConfigurationError(f"energy {kind!r} is built on {source}, and none was given")
    return model
