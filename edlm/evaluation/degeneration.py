"""Degenerate texts: the sets whose likelihood is not to be trusted, and the repeater that shows why.

A text that repeats a stretch of data is likely under any judge that reads far enough, and as varied as the data in its
single tokens: generative perplexity and unigram entropy both pass it.
"""

import math

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.evaluation.quality import Quality

PUBLISHED_PERIOD = 400 / 1024  # of the text's length
FEWEST = 8  # texts: with fewer, a standard error is itself unknown
STANDARD_ERRORS = 4.0
DEVIATIONS = 0.5


def repeaters(texts: Int[Tensor, "b l"], share: float = PUBLISHED_PERIOD) -> Int[Tensor, "b l"]:
    """The first `share` of each text's tokens, over and over to its length.

    Raises ValueError for a share that leaves no token, or nothing to repeat.
    """
    length = texts.shape[1]
    period = round(share * length)
    if not 1 <= period < length:
        raise ValueError(f"share {share} of {length} tokens is a period of {period}; it must be 1 to {length - 1}")
    return texts[:, torch.arange(length) % period]


def flags(generated: Quality, data: Quality) -> tuple[str, ...]:
    """What a reader of the generated set's likelihood must know, by comparison with held-out data texts.

    Compared are means over texts: nats per token (a set below the data is likelier than text is; one above is merely
    worse, which its number says), entropy and repetition. A difference is flagged where it exceeds both half of the
    data's standard deviation over texts and four standard errors of the difference: it is then large, and not chance.
    Raises ValueError where the sets differ in judge, number or length, for all statistics depend on these, and for
    fewer than 8 texts.
    """
    for what, one, other in (
        ("judges", generated.judge, data.judge),
        ("numbers of texts", len(generated.nats), len(data.nats)),
        ("lengths", generated.row, data.row),
    ):
        if one != other:
            raise ValueError(f"generated and data texts have different {what}, {one} and {other}; assess equal sets")
    if len(data.nats) < FEWEST:
        raise ValueError(f"{len(data.nats)} texts are too few to compare; assess {FEWEST} or more of each")
    compared = (
        ("nats per token", generated.nats / generated.tokens, data.nats / data.tokens, ("below",)),
        ("entropy", generated.unigram_entropy, data.unigram_entropy, ("above", "below")),
        ("repetition", generated.repetition, data.repetition, ("above", "below")),
    )
    sides = [(name, _side(ours, theirs), told) for name, ours, theirs, told in compared]
    return tuple(f"{name} {side} data" for name, side, told in sides if side in told)


def _side(generated: Float64[Tensor, " b"], data: Float64[Tensor, " b"]) -> str | None:
    """`above` or `below` where the means differ by more than the threshold."""
    difference = (generated.mean() - data.mean()).item()
    chance = math.sqrt(((generated.var() + data.var()) / len(data)).item())
    if abs(difference) <= max(STANDARD_ERRORS * chance, DEVIATIONS * data.std().item()):
        return None
    return "above" if difference > 0 else "below"
