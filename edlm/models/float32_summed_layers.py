"""Embedding and LayerNorm whose gradients, sums over all tokens of a micro-batch, add up in float32, not bfloat16.

torch's CPU kernels accumulate in bfloat16, whose 8 bits soon absorb each further token: with 16,384 tokens, half of
them identical, an embedding's gradient had half of its norm. The forward pass is unchanged.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """Embedding of ids as vectors."""

    def forward(self, input: Int[Tensor, "*n"]) -> Float[Tensor, "*n h"]:
        return embedded(input, self.weight, self.padding_idx)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last axis."""

    def forward(self, input: Float[Tensor, "*n h"]) -> Float[Tensor, "*n h"]:
        if not _loses(self.weight):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, self.weight.float(), bias, self.eps).to(input.dtype)


def embedded(ids: Int[Tensor, "*n"], weight: Float[Tensor, "v h"], padding: int | None = None) -> Float[Tensor, "*n h"]:
    """Return the rows of `weight` at `ids`; the row at `padding` has no gradient."""
    return F.embedding(ids, weight.float() if _loses(weight) else weight, padding).to(weight.dtype)


def sum_in_float32(network: nn.Module) -> None:
    """Replace torch's own layers within `network`, with the same weights, by those of this module.

    Embeddings that renormalise rows, scale their gradient or make it sparse stay as they are.
    """
    for module in network.modules():
        for ours in (Embedding, LayerNorm):
            if type(module) is ours.__base__ and not _special(module):
                module.__class__ = ours


def _special(module: nn.Module) -> bool:
    """Return whether a layer has a setting that the layers of this module do not have."""
    return isinstance(module, nn.Embedding) and (
        module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    )


def _loses(weight: Tensor | None) -> bool:
    """Return whether torch would accumulate this weight's gradient in bfloat16; CUDA kernels use float32."""
    return (
        weight is not None
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.requires_grad
        and torch.is_grad_enabled()
    )
