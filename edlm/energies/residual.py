"""Residual energy of this project: NCE on top of a conditional energy, which proposes the candidates."""

from edlm.energies.conditional import ConditionalEnergy
from edlm.energies.step import StepEnergy
from edlm.interfaces import AbstractEnergy
from edlm.models.denoiser import Denoiser


class ResidualEnergy(AbstractEnergy):
    """NCE energy on top of a conditional energy: p is proportional to p_c exp(-E) (docs/mathematics.md 3.5).

    Candidates and negatives are drawn from p_c, which is frozen; the head is a step energy over the whole canvas.
    """

    whole_sequence = False

    def __init__(self, width: int, layers: int, heads: int, denoiser: Denoiser, proposal: ConditionalEnergy) -> None:
        super().__init__()
        self.head = StepEnergy(width, layers, heads, None, denoiser)
        self.proposal = proposal.requires_grad_(False)

    def forward(self, x, xt, t, log_p, context):
        return self.head(x, xt, t, log_p, context)
