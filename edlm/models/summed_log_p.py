"""Weighted sum of log-probabilities whose gradient is computed beside it: the logits of a chunk are computed once.

Given w_n, the sum S = sum_n w_n log p(x_n) has the gradient w_n (onehot(x_n) - p_n) with respect to the logits of
position n, which is known as soon as p_n is. So no logits are kept or computed again for the backward pass, which only
scales the gradients by that of S.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edlm.models.chunk_memory import ChunkMemory

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of features [n h], weight [u h] and bias [u]: logits [n v], v <= u, of the first v rows of the weight, in
memory of their own and in the precision of the features. It may give tokens probability 0."""


def summed_log_p(
    logits: Logits,
    rows: int,
    features: Float[Tensor, "n h"],
    weight: Float[Tensor, "u h"],
    bias: Float[Tensor, " u"],
    tokens: Int[Tensor, " n"],
    weights: Float[Tensor, " n"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " n"]]:
    """Return sum_n weights_n log p(tokens_n), and log p of each, without a gradient; in chunks of so many `rows`.

    The gradients of the weight and the bias are summed over the chunks in float32. Those of tokens and weights are not
    defined.
    """
    total, log_p = _SummedLogP.apply(  # pyright: ignore[reportGeneralTypeIssues] - a decorated method
        logits, rows, torch.is_grad_enabled(), features, weight, bias, tokens, weights
    )
    return total, log_p


class _SummedLogP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Logits, rows: int, with_gradients: bool, features, weight, bias, tokens, weights
    ) -> tuple[Tensor, Tensor]:
        needed = [with_gradients and needs for needs in ctx.needs_input_grad[3:6]]
        chunks = _Chunks(logits, (features, weight, bias), needed)
        parts = []
        for start in range(0, len(features), rows):
            chunk = slice(start, start + rows)
            parts.append(chunks.add(chunk, features[chunk], tokens[chunk], weights[chunk]))
        log_p = torch.cat(parts) if parts else features.new_zeros(0, dtype=torch.float32)
        ctx.gradients = [
            None if gradient is None else gradient.to(value.dtype)
            for gradient, value in zip(chunks.gradients, (features, weight, bias), strict=True)
        ]
        ctx.mark_non_differentiable(log_p)
        return (weights * log_p).sum(), log_p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total = grads[0]
        # Scaled in place, because the weight's is the largest tensor of a step: it serves one backward pass.
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "a second backward pass through a summed log p"
        scaled = [None if gradient is None else gradient.mul_(total.to(gradient.dtype)) for gradient in gradients]
        return None, None, None, *scaled, None, None


class _Chunks:
    """Chunks of one pass, and the gradients that they sum up, in float32."""

    def __init__(self, logits: Logits, like: tuple[Tensor, Tensor, Tensor], needed: list[bool]) -> None:
        self.logits, (_, self.weight, self.bias), self.memory = logits, like, ChunkMemory()
        self.gradients = [
            torch.zeros_like(value, dtype=torch.float32) if needs else None
            for value, needs in zip(like, needed, strict=True)
        ]

    def add(
        self, chunk: slice, x: Float[Tensor, "c h"], tokens: Int[Tensor, " c"], weights: Float[Tensor, " c"]
    ) -> Float[Tensor, " c"]:
        """Return log p of the tokens of a chunk, and add to the gradients of the features, the weight and the bias."""
        token, scale = tokens[:, None], weights[:, None].float()
        logits = self.logits(x, self.weight, self.bias)
        assert logits.dtype == x.dtype
        p, v = self.memory.log_p(logits), logits.shape[1]
        log_p = p.gather(-1, token)[:, 0]
        of_features, of_weight, of_bias = self.gradients
        if of_features is None and of_weight is None and of_bias is None:
            return log_p
        p.exp_().scatter_add_(1, token, torch.full_like(log_p, -1.0)[:, None])  # minus the gradient of log p
        if of_bias is not None:
            of_bias[:v] -= scale[:, 0] @ p
        if x.dtype != torch.float32:
            p = logits.copy_(p)  # in the place of the logits
        scaled = x * -scale.to(x.dtype)
        if of_weight is not None and x.dtype == torch.float32:
            of_weight[:v].addmm_(p.T, scaled)
        elif of_weight is not None and x.device.type == "cpu":
            of_weight[:v] += self.memory.scratch(of_weight[:v], "product").copy_(p.T @ scaled)
        elif of_weight is not None:  # a GPU adds two precisions in one kernel
            of_weight[:v] += p.T @ scaled
        if of_features is not None:
            of_features[chunk] = (p @ self.weight[:v]).float() * -scale
        return log_p
