"""Canvases: prompts, gaps and long texts laid out for a model that always reads exactly its trained length."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor


def canvas(known: Sequence[int | None], length: int, mask: int) -> Int64[Tensor, " l"]:
    """Return `known` left-aligned in `length` positions, with masks in its gaps and in the remaining positions.

    Raise ValueError for more than `length` positions and for an id that is no token.
    """
    if len(known) > length:
        raise ValueError(f"{len(known)} positions do not fit the model's canvas of {length}; give a shorter text")
    result = torch.full((length,), mask, dtype=torch.int64)
    for position, token in enumerate(known):
        if token is not None:
            result[position] = checked(token, mask)
    return result


def checked(token: int, vocabulary: int) -> int:
    """Return the token. Raise ValueError if it is none; the mask, whose id is `vocabulary`, is none either."""
    if not 0 <= token < vocabulary:
        raise ValueError(f"token {token} is not in the vocabulary: ids are 0 to {vocabulary - 1}")
    return token


def context_tokens(known: int, new_tokens: int, length: int) -> int:
    """Return how many of the last `known` tokens a canvas starts with, before `new_tokens` more are generated.

    All that leave room for the new tokens, or half the canvas if that would leave fewer: a long text advances by
    half a canvas at a time, and its last canvas sees as much context as possible.
    """
    return min(known, max(length - new_tokens, length // 2))
