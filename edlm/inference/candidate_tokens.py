"""Tokens of the candidates among which a step of a text chose, as far as they are reported."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

MOST_TOKENS = 4096  # of all candidates of a step together


@dataclass(frozen=True)
class CandidateTokens:
    """Tokens of k candidates at the positions that they fill: those that the step unmasks, and for an energy of whole
    sequences the other masked ones, too."""

    positions: tuple[int, ...]
    """Positions of the text, in ascending order."""
    groups: tuple[int, ...]
    """Group of each position, as an index of `Progress.energies`."""
    tokens: tuple[tuple[int, ...], ...]
    """Per candidate, its token at each position."""


def reported(
    x: Int[Tensor, "k l"],
    filled: Bool[Tensor, " l"],
    unmasked: Bool[Tensor, " l"],
    block: int | None,
    first: int,
) -> CandidateTokens:
    """Return the tokens of the candidates x at the `filled` positions of a canvas that belong to the text.

    If they are more than `MOST_TOKENS`, positions are left out: the last of those that are not `unmasked`, then the
    last. `block`: positions per group; None: a single group. `first`: position of the text at the start of the canvas.
    """
    most = MOST_TOKENS // len(x)
    unmasked_first = [index for part in (unmasked, ~unmasked) for index in torch.nonzero(filled & part)[:, 0].tolist()]
    at = sorted(unmasked_first[:most])
    return CandidateTokens(
        positions=tuple(first + index for index in at),
        groups=tuple(0 if block is None else index // block for index in at),
        tokens=tuple(map(tuple, x[:, at].tolist())),
    )
