"""Step energies of this project: light heads on the features that the denoiser computes for the candidates anyway.

They see this step's new tokens and masks elsewhere (docs/mathematics.md 3.3 to 3.5).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edlm import equations
from edlm.config import Positive, config
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.interfaces import AbstractEnergy
from edlm.models.denoiser import AbstractDenoiser
from edlm.models.float32_summed_layers import Embedding, LayerNorm
from edlm.models.gather import GatheredPositions, gather_positions
from edlm.models.readout import ScalarHead
from edlm.models.row_invariance import RowInvariantLinear
from edlm.models.transformer import Block, Blocks, require_whole_heads


class StepEnergy(AbstractEnergy):
    """Light head on the denoiser's features, summed over each block's new positions (docs/mathematics.md 3.3).

    At each new position the head reads its own token and those to the left and right: known, new in the same block, or
    masked. New tokens of other blocks are masks to it, so that blocks are independent given x_t. The output is zero
    before training: step 0 is plain diffusion.
    """

    whole_sequence = False
    takes_positions = True

    def __init__(self, width: int, layers: int, heads: int, block: int | None, denoiser: AbstractDenoiser) -> None:
        super().__init__()
        self.block, self.mask = block, denoiser.mask
        self.features = RowInvariantLinear(denoiser.width, width)
        # one id more than the denoiser: the edge of the canvas
        self.own, self.left, self.right = (Embedding(denoiser.vocabulary + 2, width) for _ in range(3))
        self.layers = Blocks(Block(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width, bias=False)
        self.scalar = ScalarHead(width)

    def forward(self, x, xt, t, log_p, context, new=None):
        b, k, length = x.shape
        found, x = new_positions(x, xt, self.mask)
        new = found if new is None else new
        energy = context.new_zeros(b, k, equations.group_count(length, self.block), dtype=torch.float32)
        for gathered in gather_positions(new, self.block, self.training, context.device):
            energy[gathered.rows, :, gathered.groups] += self._weigh(gathered, x, xt, context)
        return energy

    def _weigh(self, gathered: GatheredPositions, x: Tensor, xt: Tensor, context: Tensor) -> Float[Tensor, "n k"]:
        rows, positions, valid = gathered.rows, gathered.positions, gathered.valid
        k = x.shape[1]
        z = self.features(context[rows[:, None], positions])[:, None]  # the same for all candidates
        z = z + self.own(x[rows[:, None], :, positions].transpose(1, 2))
        z = z + self.left(self._neighbour(gathered, x, xt, -1)) + self.right(self._neighbour(gathered, x, xt, +1))
        z, valid_k = z.flatten(0, 1), valid.repeat_interleave(k, 0)
        rotary = self.layers.rotary(positions.repeat_interleave(k, 0))
        for layer in self.layers:
            z = layer(z, rotary, valid=valid_k)
        return (self.scalar(self.norm(z)) * valid_k).sum(dim=-1).unflatten(0, (-1, k))

    def _neighbour(self, gathered: GatheredPositions, x: Tensor, xt: Tensor, offset: int) -> Int[Tensor, "n k m"]:
        """Return the token beside each position: a mask if it is new in another block, a special id beyond the edge."""
        length = xt.shape[1]
        rows, beside = gathered.rows[:, None], gathered.positions + offset
        inside = beside.clamp(0, length - 1)
        token = x[rows, :, inside].transpose(1, 2)
        if self.block is not None:
            foreign = inside // self.block != gathered.positions // self.block
            token = torch.where(foreign[:, None], xt[rows, inside][:, None], token)
        beyond = (beside < 0) | (beside >= length)
        return torch.where(beyond[:, None], self.mask + 1, token)


@config
class StepEnergyConfig(AbstractEnergyConfig):
    """Step energy in blocks of neighbouring positions (None: one block, the whole canvas)."""

    network = StepEnergy
    kind: Literal["step"] = "step"
    block: Positive | None = 8
    """Positions per block; blocks are scored and resampled independently. None: one block, the whole canvas."""
    width: Positive = 128
    """Channels per position of the head; a multiple of 2 x `heads`."""
    layers: Positive = 1
    """Number of the head's layers."""
    heads: Positive = 4
    """Attention heads per layer of the head."""

    def __post_init__(self) -> None:
        require_whole_heads(self.width, self.heads)

    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> StepEnergy:
        return StepEnergy(self.width, self.layers, self.heads, self.block, denoiser)


def new_positions(x: Tensor, xt: Tensor, mask: int) -> tuple[Bool[Tensor, "b l"], Int[Tensor, "b k l"]]:
    """Return U, where x_t is masked and x is not, and x with the known tokens of x_t in place."""
    masked = xt == mask
    return masked & (x[:, 0] != mask), equations.carry_over(xt[:, None].expand_as(x), x, masked[:, None].expand_as(x))
