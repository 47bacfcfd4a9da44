"""Draws from given weights by inverse CDF, also over a large vocabulary."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

BLOCK = 64  # tokens whose weights are summed up before they are drawn from, in a large vocabulary:
LARGE = 16 * BLOCK  # tokens or more


def draw_by_weight(p: Float[Tensor, "n v"], u: Float64[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """Draw k tokens per position in proportion to p >= 0: each the first at which the weights so far exceed u of all.

    They are summed up in float64: in float32 the sum would swallow the rare tokens of a large vocabulary. There, a
    block of tokens is drawn first, by the blocks' sums in the precision of p, and then a token of the block: no sums
    of the size of p are kept, and a token's share of its block is as exact as its weight.
    """
    if p.shape[-1] < LARGE:
        cdf = p.to(torch.float64, copy=True)
        torch.cumsum(cdf, dim=-1, out=cdf)
        return _first_above(cdf, u * cdf[:, -1:]).clamp(max=p.shape[-1] - 1)
    at_once = p.shape[-1] // (4 * BLOCK)  # candidates whose blocks take less memory than p
    return torch.cat([_by_block(p, part) for part in u.split(at_once, dim=-1)], dim=-1)


def _by_block(p: Float[Tensor, "n v"], u: Float64[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    size = p.shape[-1]
    whole = size // BLOCK * BLOCK
    weights = torch.cat(
        [p[:, :whole].unflatten(-1, (-1, BLOCK)).sum(dim=-1), p[:, whole:].sum(dim=-1, keepdim=True)], -1
    )
    cdf = weights.cumsum(dim=-1, dtype=torch.float64)
    target = u * cdf[:, -1:]
    block = _first_above(cdf, target).clamp(max=cdf.shape[-1] - 1)
    before = (cdf - weights).gather(-1, block)
    members = block[..., None] * BLOCK + torch.arange(BLOCK, device=p.device)
    own = p.gather(-1, members.clamp(max=size - 1).flatten(1)).view(members.shape)
    within = own.masked_fill(members >= size, 0).cumsum(dim=-1, dtype=torch.float64)
    # 1 - 2^-53 of a sum is less than it, so that a token without weight is never drawn
    share = ((target - before) / weights.gather(-1, block)).clamp(max=1 - 2**-53)
    return (block * BLOCK + _first_above(within, share[..., None] * within[..., -1:])[..., 0]).clamp(max=size - 1)


def _first_above(cdf: Float64[Tensor, "*n v"], target: Float64[Tensor, "*n k"]) -> Int[Tensor, "*n k"]:
    return torch.searchsorted(cdf, target, right=True)
