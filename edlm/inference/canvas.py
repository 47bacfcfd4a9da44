"""Canvases: what a prompt, a gap and a long text look like to a model that always reads exactly its trained length."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor


def canvas(known: Sequence[int | None], length: int, mask: int) -> Int64[Tensor, " l"]:
    """`known` from the left, with masks in its holes and in the rest of the `length` positions.

    Raises ValueError for more than `length` positions and for an id that is no token.
    """
    if len(known) > length:
        raise ValueError(f"{len(known)} positions do not fit the model's canvas of {length}; give a shorter text")
    result = torch.full((length,), mask, dtype=torch.int64)
    for place, token in enumerate(known):
        if token is not None:
            result[place] = checked(token, mask)
    return result


def checked(token: int, vocabulary: int) -> int:
    """The token itself; ValueError where it is none. The mask, whose id is `vocabulary`, is none either."""
    if not 0 <= token < vocabulary:
        raise ValueError(f"token {token} is not in the vocabulary: ids are 0 to {vocabulary - 1}")
    return token


def context_tokens(known: int, wanted: int, length: int) -> int:
    """How many of the last `known` tokens a canvas shows before it is filled, `wanted` tokens being still to write.

    All that leave room for what is wanted, and half the canvas where that leaves less: so a long text slides on by
    half a canvas at a time, and its last canvas sees as much as it can.
    """
    return min(known, max(length - wanted, length // 2))


def block_count(known: int, wanted: int, length: int) -> int:
    """How many canvases it takes to write `wanted` tokens after `known` ones."""
    count = 0
    while wanted > 0:
        written = min(wanted, length - context_tokens(known, wanted, length))
        known, wanted, count = known + written, wanted - written, count + 1
    return count
