"""Counts of outcomes: every way in which draws fall on them, and how far counts are from a distribution."""

import itertools
import math
from functools import cache

import torch
from torch import Tensor


@cache
def multisets(n: int, k: int) -> Tensor:
    """Every way in which k draws fall on n outcomes, as how often each is drawn: [(n + k - 1 over k) n]."""
    drawn = torch.tensor(list(itertools.combinations_with_replacement(range(n), k))).view(-1, k)
    return torch.zeros(len(drawn), n, dtype=torch.float64).scatter_add(1, drawn, torch.ones(drawn.shape).double())


def chi_square(counts: Tensor, distribution: Tensor) -> float:
    """How far counts are from a distribution, as a standard normal deviate (Wilson and Hilferty 1931).

    Cells with fewer than five expected counts are merged; a count where the distribution is zero is infinitely far.
    """
    if (counts[distribution == 0] > 0).any():
        return math.inf
    expected, counts = distribution * counts.sum(), counts.double()
    small = expected < 5
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    counts = torch.cat([counts[~small], counts[small].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    df = len(expected) - 1
    if df == 0:  # one text is certain, and nothing else was counted
        return -math.inf
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
