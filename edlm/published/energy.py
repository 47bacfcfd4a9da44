"""EDLM's NCE energy in its published layout: a transformer over pairs of x_t and x_0 (Xu et al. 2024, sec. 4.2)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edlm.interfaces import AbstractEnergy
from edlm.models.float32_summed_layers import Embedding
from edlm.models.readout import ScalarHead
from edlm.models.row_invariance import RowInvariantLinear, linear
from edlm.published.conditioning import PublishedTransformerConfig, published_transformer


class PublishedEnergy(AbstractEnergy):
    """EDLM's NCE energy of whole sequences, with an embedding of its own; E = 0 before training."""

    whole_sequence = True

    def __init__(self, config: PublishedTransformerConfig, vocabulary: int) -> None:
        super().__init__()
        width = config.width
        self.embedding = Embedding(vocabulary + 1, width)
        self.project = RowInvariantLinear(2 * width, width)
        self.transformer = published_transformer(config)
        self.output = RowInvariantLinear(width, width)
        self.hidden = RowInvariantLinear(width, width)
        self.scalar = ScalarHead(width)

    def forward(self, x, xt, t, log_p, context):
        k = x.shape[1]
        of_xt, of_x = self.project.weight.chunk(2, dim=1)  # once for x_t, which the candidates share
        pair = linear(self.embedding(xt), of_xt, self.project.bias)[:, None] + linear(self.embedding(x), of_x)
        features = self.transformer(pair.flatten(0, 1), t.repeat_interleave(k))
        # The mean commutes with a linear map, which then costs one position. In float32, because candidates differ in
        # few tokens: rounding would change the sign of what ReLU reads for one of them and not for another.
        pooled = _in_float32(self.output, features.float().mean(dim=1))
        return self.scalar(F.relu(_in_float32(self.hidden, pooled))).unflatten(0, (-1, k))[..., None]


def _in_float32(layer: RowInvariantLinear, x: Float[Tensor, "n h"]) -> Float[Tensor, "n o"]:
    return linear(x, layer.weight.float(), layer.bias.float())
