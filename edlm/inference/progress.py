"""Progress of a text that is generated: its tokens so far, the finished text, and the cost of generating it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edlm.inference.candidate_tokens import CandidateTokens
from edlm.inference.token_logprobs import TokenLogprob
from edlm.sampling.state import StepResult


@dataclass(frozen=True)
class GenerationCost:
    """Cost of filling one row."""

    denoiser_calls: int = 0
    energy_calls: int = 0
    ess: tuple[float, ...] = ()
    """Effective sample size of each step that chose among candidates."""

    def plus(self, step: StepResult, row: int) -> "GenerationCost":
        """Return the cost with that of `row` of `step` added."""
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
        """Return the mean effective sample size; None if no step resampled."""
        return sum(self.ess) / len(self.ess) if self.ess else None


@dataclass(frozen=True)
class Text:
    """One generated text: for a completion, what follows the prompt; for an infill, the whole with its given parts."""

    tokens: tuple[int, ...] = field(repr=False)
    text: str
    seed: int
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended the document here, or a stop string matched."""
    cost: GenerationCost = field(repr=False)
    logprobs: tuple[TokenLogprob | None, ...] | None = field(default=None, repr=False)
    """log p_theta of each token at the step that unmasked it, None for a given one; if the request asks for them."""

    def __str__(self) -> str:
        return self.text


def document_end(tokens: Sequence[int], mask: int, separator: int | None) -> int | None:
    """Return the position of the separator that certainly ends the document: no position before it is masked.

    None if the document may still continue, or may end earlier, at a masked position.
    """
    first = next((position for position, token in enumerate(tokens) if token in (mask, separator)), None)
    return first if first is not None and tokens[first] == separator else None


NOT_YET = -1  # in `unmasked_at`: still masked


@dataclass(frozen=True)
class Progress:
    """Snapshot of a text in progress. Only the latest is kept: an infrequent reader misses snapshots, but no token's
    step."""

    status: Literal["queued", "running", "done"]
    tokens: tuple[int, ...]
    """New positions of a completion, or all positions of an infill; the mask where there is no token yet."""
    unmasked_at: tuple[int, ...]
    """Step that unmasked each of these positions, counted from 1 over all blocks; 0: given, -1: still masked."""
    step: int
    """Latest step that unmasked anything, counted likewise."""
    steps: int
    """Number of steps of all blocks."""
    t: float
    """Time of the canvas, from 1 down to 0 in each block."""
    block: int
    masked: int
    committed: int
    """Number of positions before the first mask, which are final."""
    cost: GenerationCost
    scored_step: int | None = None
    """Latest step that chose among candidates; the fields below describe it."""
    ess: float | None = None
    energies: tuple[tuple[float | None, ...], ...] | None = None
    """Energies of the k candidates of each position group; None for an impossible candidate and a group without
    choice."""
    picked: tuple[int, ...] | None = None
    candidate_tokens: CandidateTokens | None = None
    """Tokens of the candidates; None if the request does not ask for them."""
    logprobs: tuple[TokenLogprob | None, ...] | None = None
    """log p_theta of each token at the step that unmasked it; None if the request does not ask for it."""
