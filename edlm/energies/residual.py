"""Residual energy of this project: NCE on top of a conditional energy, which proposes the candidates."""

from typing import Literal

from torch import nn

from edlm.config import Positive, config
from edlm.energies.conditional import ConditionalEnergy
from edlm.energies.configuration import AbstractEnergyConfig, required
from edlm.energies.step import StepEnergy
from edlm.interfaces import AbstractEnergy
from edlm.models.denoiser import AbstractDenoiser
from edlm.models.transformer import require_whole_heads


class ResidualEnergy(AbstractEnergy):
    """NCE energy on top of a conditional energy: p is proportional to p_c exp(-E) (docs/mathematics.md 3.5).

    Candidates and negatives are drawn from p_c, which is frozen; the head is a step energy over the whole canvas.
    """

    whole_sequence = False
    takes_positions = True

    def __init__(
        self, width: int, layers: int, heads: int, denoiser: AbstractDenoiser, proposal: ConditionalEnergy
    ) -> None:
        super().__init__()
        self.head = StepEnergy(width, layers, heads, None, denoiser)
        self.proposal = proposal.requires_grad_(False)

    def forward(self, x, xt, t, log_p, context, new=None):
        return self.head(x, xt, t, log_p, context, new)


@config
class ResidualEnergyConfig(AbstractEnergyConfig):
    """NCE energy on top of a conditional energy, which is trained first and then proposes the candidates."""

    network = ResidualEnergy
    built_on = ConditionalEnergy
    kind: Literal["residual"] = "residual"
    width: Positive = 128
    """Channels per position of the head; a multiple of 2 x `heads`."""
    layers: Positive = 1
    """Number of the head's layers."""
    heads: Positive = 4
    """Attention heads per layer of the head."""

    def __post_init__(self) -> None:
        require_whole_heads(self.width, self.heads)

    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> ResidualEnergy:
        proposal = required(ConditionalEnergy, base, self.kind)
        return ResidualEnergy(self.width, self.layers, self.heads, denoiser, proposal)
