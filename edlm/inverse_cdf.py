"""Draws from given weights by inverse CDF, also over a large vocabulary."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

BLOCK = 64  # tokens
LARGE = 16 * BLOCK  # a vocabulary of so many tokens or more is summed up by blocks


def draw_by_weight(p: Float[Tensor, "n v"], u: Float64[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """Draw k tokens per position in proportion to p >= 0: the first whose cumulative weight exceeds u times the total.

    Weights are summed up in float64: in float32 the sum would swallow the rare tokens of a large vocabulary. There, a
    block of tokens is drawn first, by the blocks' sums in the precision of p, and then a token of the block: no sums
    of the size of p are kept, and a token's share of its block is as exact as its weight.
    """
    if p.shape[-1] < LARGE:
        cdf = p.to(torch.float64, copy=True)
        torch.cumsum(cdf, dim=-1, out=cdf)
        return _first_above(cdf, u * cdf[:, -1:]).clamp(max=p.shape[-1] - 1)
    whole = p.shape[-1] // BLOCK * BLOCK
    rest = p[:, whole:].sum(dim=-1, keepdim=True)
    weights = torch.cat([p[:, :whole].unflatten(-1, (-1, BLOCK)).sum(dim=-1), rest], dim=-1)
    cdf = weights.cumsum(dim=-1, dtype=torch.float64)
    at_once = p.shape[-1] // (4 * BLOCK)  # candidates: their blocks take what float64 sums of the size of p would
    parts = [_by_block(p, weights, cdf, part) for part in u.split(at_once, dim=-1)]
    return torch.cat(parts, dim=-1)


def _by_block(
    p: Float[Tensor, "n v"], weights: Float[Tensor, "n m"], cdf: Float64[Tensor, "n m"], u: Float64[Tensor, "n k"]
) -> Int[Tensor, "n k"]:
    """Draw tokens, given the weights of the blocks and their cumulative sums."""
    last, target = p.shape[-1] - 1, u * cdf[:, -1:]
    block = _first_above(cdf, target).clamp(max=cdf.shape[-1] - 1)
    members = block[..., None] * BLOCK + torch.arange(BLOCK, device=p.device)
    own = p.gather(-1, members.clamp(max=last).flatten(1)).view(members.shape)
    within = own.masked_fill(members > last, 0).cumsum(dim=-1, dtype=torch.float64)
    # Rounding may go beyond the block. 1 - 2^-53 of a sum is less than it: a token without weight is never drawn.
    before = (cdf - weights).gather(-1, block)
    share = ((target - before) / weights.gather(-1, block)).clamp(0, 1 - 2**-53)
    return (block * BLOCK + _first_above(within, share[..., None] * within[..., -1:])[..., 0]).clamp(max=last)


def _first_above(cdf: Float64[Tensor, "*n v"], target: Float64[Tensor, "*n k"]) -> Int[Tensor, "*n k"]:
    return torch.searchsorted(cdf, target, right=True)
