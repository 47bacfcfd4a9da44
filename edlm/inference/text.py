"""A generated text, and what it took."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edlm.sampling.state import StepResult


@dataclass(frozen=True)
class Tally:
    """What it took to fill one row."""

    denoiser_calls: int = 0
    energy_calls: int = 0
    ess: tuple[float, ...] = ()
    """Effective sample size of each step that had something to choose."""

    def plus(self, step: StepResult, row: int) -> "Tally":
        """With `row` of this step counted."""
        counted = replace(
            self,
            denoiser_calls=self.denoiser_calls + int(step.denoiser_calls[row]),
            energy_calls=self.energy_calls + int(step.energy_calls[row]),
        )
        if step.energies is None or bool(step.energies[row].isnan().all()):
            return counted
        return replace(counted, ess=(*self.ess, float(step.ess[row])))

    @property
    def mean_ess(self) -> float | None:
        """None where no step resampled."""
        return sum(self.ess) / len(self.ess) if self.ess else None


@dataclass(frozen=True)
class Text:
    """One generated text: of a completion what follows the prompt, of an infill the whole, given parts included."""

    tokens: tuple[int, ...]
    text: str
    seed: int
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended the document there, or a stop string was met."""
    tally: Tally


def document_end(tokens: Sequence[int], mask: int, separator: int | None) -> int | None:
    """The place of the separator at which the document has ended for certain, everything before it being revealed.

    None where it may still go on, or end before a place that is masked.
    """
    first = next((place for place, token in enumerate(tokens) if token in (mask, separator)), None)
    return first if first is not None and tokens[first] == separator else None


NOT_YET = -1  # in `revealed_at`


@dataclass(frozen=True)
class Progress:
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
