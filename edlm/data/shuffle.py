"""Row order: permutations computed on demand and never held in memory."""

import torch
from jaxtyping import Int64
from torch import Tensor

from edlm.rng import Purpose, seeds

ROUNDS = 6  # of the Feistel network: even, and more than the 4 of Luby and Rackoff 1988, as small halves mix badly
SMALLEST = 6  # bits: halves of fewer than 3 mix so badly that some rows of a tiny corpus would come first too often


def permuted(index: Int64[Tensor, " b"], count: int, seed: int, epoch: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Return the image of each `index` under the permutation (seed, epoch) of 0..count-1.

    A Feistel network permutes the numbers below the next power of two; results outside 0..count-1 pass through it again
    until they are inside (cycle walking; Black and Rogaway 2002), less than twice on average for more than 32 rows.
    """
    bits = max(SMALLEST, (count - 1).bit_length())
    index = _feistel(index, bits, seed, epoch)
    while bool((outside := index >= count).any()):
        index = torch.where(outside, _feistel(index, bits, seed, epoch), index)
    return index


def _feistel(index: Tensor, bits: int, seed: int, epoch: Tensor) -> Tensor:
    """Apply a keyed permutation of the `bits`-bit numbers: each round mixes one part of the bits into the other."""
    low = bits // 2
    high = bits - low
    left, right = index >> low, index & ((1 << low) - 1)
    for round_index in range(ROUNDS):
        random_bits = seeds(seed, epoch, (right << 8) | round_index, Purpose.ORDER)
        left, right = right, left ^ (random_bits & ((1 << high) - 1))
        low, high = high, low
    return (left << low) | right
