"""Degenerate texts: flags for sets whose likelihood is misleading, and the repeater baseline that shows why.

A text that repeats a stretch of data is likely under any judge with a long enough context, and its single tokens are as
varied as those of the data: it passes both generative perplexity and unigram entropy.
"""

import math

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.evaluation.judged_quality import Quality

PUBLISHED_PERIOD = 400 / 1024  # fraction of the text's length
FEWEST = 8  # texts; with fewer, the standard error itself is unknown
STANDARD_ERRORS = 4.0
DEVIATIONS = 0.5


def repeaters(texts: Int[Tensor, "b l"], share: float = PUBLISHED_PERIOD) -> Int[Tensor, "b l"]:
    """Return texts that repeat the first `share` of their tokens up to their full length.

    Raise ValueError for a share that leaves no token, or nothing to repeat.
    """
    length = texts.shape[1]
    period = round(share * length)
    if not 1 <= period < length:
        raise ValueError(f"share {share} of {length} tokens is a period of {period}; it must be 1 to {length - 1}")
    return texts[:, torch.arange(length) % period]


def flags(generated: Quality, data: Quality) -> tuple[str, ...]:
    """Return the warnings about the generated set's likelihood, by comparison with held-out data texts.

    The comparison is of means over texts: nats per token (only below the data, where the set is likelier than text is;
    above, it is merely worse, which its number says), entropy and repetition. A difference is flagged if it exceeds
    both half of the data's standard deviation over texts and four standard errors of the difference: it is then large,
    and not due to chance. Raise ValueError if the sets differ in judge, number of texts or length, on which all
    statistics depend, and for fewer than 8 texts.
    """
    for label, value, reference in (
        ("judges", generated.judge, data.judge),
        ("numbers of texts", len(generated.nats), len(data.nats)),
        ("lengths", generated.row, data.row),
    ):
        if value != reference:
            raise ValueError(
                f"generated and data texts have different {label}, {value} and {reference}; assess equal sets"
            )
    if len(data.nats) < FEWEST:
        raise ValueError(f"{len(data.nats)} texts are too few to compare; assess {FEWEST} or more of each")
    compared = (
        ("nats per token", generated.nats / generated.tokens, data.nats / data.tokens, ("below",)),
        ("entropy", generated.unigram_entropy, data.unigram_entropy, ("above", "below")),
        ("repetition", generated.repetition, data.repetition, ("above", "below")),
    )
    sides = [
        (name, _side(generated_values, data_values), reported)
        for name, generated_values, data_values, reported in compared
    ]
    return tuple(f"{name} {side} data" for name, side, reported in sides if side in reported)


def _side(generated: Float64[Tensor, " b"], data: Float64[Tensor, " b"]) -> str | None:
    """Return `above` or `below` if the means differ by more than the threshold, else None."""
    difference = (generated.mean() - data.mean()).item()
    standard_error = math.sqrt(((generated.var() + data.var()) / len(data)).item())
    if abs(difference) <= max(STANDARD_ERRORS * standard_error, DEVIATIONS * data.std().item()):
        return None
    return "above" if difference > 0 else "below"
