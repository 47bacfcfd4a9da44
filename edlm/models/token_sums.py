"""Layers whose gradients are sums over all tokens of a micro-batch: in bfloat16 those are added up in float32.

torch's CPU kernels add them up in bfloat16, whose 8 bits soon swallow each further token: of 16,384 tokens, half of
them one and the same, an embedding's gradient had half of its norm. What comes forward is not changed.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """Ids to vectors."""

    def forward(self, input: Int[Tensor, "*n"]) -> Float[Tensor, "*n h"]:
        return embedded(input, self.weight)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last axis."""

    def forward(self, input: Float[Tensor, "*n h"]) -> Float[Tensor, "*n h"]:
        if not _loses(self.weight):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, self.weight.float(), bias, self.eps).to(input.dtype)


def embedded(ids: Int[Tensor, "*n"], weight: Float[Tensor, "v h"]) -> Float[Tensor, "*n h"]:
    """The rows of `weight` at `ids`."""
    return F.embedding(ids, weight.float() if _loses(weight) else weight).to(weight.dtype)


def _loses(weight: Tensor | None) -> bool:
    """Whether torch would add up this weight's gradient in bfloat16; CUDA's kernels do it in float32."""
    return (
        weight is not None
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and weight.requires_grad
        and torch.is_grad_enabled()
    )
