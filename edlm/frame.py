"""Frames: what a text on its way looks like now, for anyone who cares to look."""

from dataclasses import dataclass
from typing import Literal

from edlm.text import Tally

NOT_YET = -1  # in `revealed_at`


@dataclass(frozen=True)
class Frame:
    """A text at one moment. Only the latest is kept: who looks seldom misses states, but no token's step."""

    status: Literal["queued", "running", "done"]
    tokens: tuple[int, ...]
    """Of a completion the new positions, of an infill all of them; the mask where no token is yet."""
    revealed_at: tuple[int, ...]
    """For each of them the step, counted from 1 over all blocks, that revealed it; 0: given, -1: not yet."""
    step: int
    """The latest step that revealed anything, counted likewise."""
    steps: int
    """Of all blocks."""
    t: float
    """The time of the canvas, from 1 down to 0 in each block."""
    block: int
    masked: int
    committed: int
    """Positions before the first mask: they stand for good."""
    tally: Tally
    weighed_step: int | None = None
    """The latest step that chose among candidates; what follows is of it."""
    ess: float | None = None
    energies: tuple[tuple[float | None, ...], ...] | None = None
    """For each group of positions those of its k candidates; None for what cannot be, and where nothing was chosen."""
    picked: tuple[int, ...] | None = None
