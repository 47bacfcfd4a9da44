"""The order of rows: permutations that are computed where they are asked for, and never held in memory."""

import torch
from jaxtyping import Int64
from torch import Tensor

from edlm.rng import Purpose, seeds

ROUNDS = 6  # of the Feistel network: more than the 4 of Luby and Rackoff 1988, as small halves mix badly; even
SMALLEST = (
    6  # bits: halves of fewer than 3 bits mix so badly that some rows of a tiny corpus would come first too often
)


def permuted(index: Int64[Tensor, " b"], count: int, seed: int, epoch: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Where the permutation (seed, epoch) of 0..count-1 takes each `index`.

    A Feistel network permutes the numbers below the next power of two; what falls outside 0..count-1 goes through it
    again until it is inside (cycle walking; Black and Rogaway 2002), less than twice on average for more than 32 rows.
    """
    bits = max(SMALLEST, (count - 1).bit_length())
    index = _feistel(index, bits, seed, epoch)
    while bool((outside := index >= count).any()):
        index = torch.where(outside, _feistel(index, bits, seed, epoch), index)
    return index


def _feistel(index: Tensor, bits: int, seed: int, epoch: Tensor) -> Tensor:
    """A keyed permutation of the numbers of `bits` bits: each round mixes one part of the bits into the other."""
    low = bits // 2
    high = bits - low
    left, right = index >> low, index & ((1 << low) - 1)
    for number in range(ROUNDS):
        drawn = seeds(seed, epoch, (right << 8) | number, Purpose.ORDER)
        left, right = right, left ^ (drawn & ((1 << high) - 1))
        low, high = high, low
    return (left << low) | right
