"""Incremental denoising states of a canvas for one client: each event holds what changed since the last one sent."""

import math
from collections.abc import Sequence
from typing import Any

from cluster.http.served_model import TokenText
from edlm.inference.candidate_tokens import CandidateTokens
from edlm.inference.progress import NOT_YET, Progress
from edlm.sampling.sampler import Sampler


class DenoisingEvents:
    """Denoising events for the positions `shown` of one text.

    Skipped states lose no unmasked positions: the next event includes them.
    """

    def __init__(self, index: int, pieces: TokenText, sampler: Sampler, block: int | None, shown: slice) -> None:
        self._index, self._pieces, self._shown = index, pieces, shown
        self._candidates, self._block = sampler.candidates, block
        self._sent: set[int] = set()
        self._step: int | None = None
        self._scored_step: int | None = None  # whose candidates were sent

    def state(self, progress: Progress) -> dict[str, Any] | None:
        """Return the positions unmasked since the last event and the latest resampling step; None if nothing is new."""
        if progress.step == self._step:
            return None
        self._step = progress.step
        tokens, unmasked_at = progress.tokens[self._shown], progress.unmasked_at[self._shown]
        new = [i for i, step in enumerate(unmasked_at) if step != NOT_YET and i not in self._sent]
        self._sent.update(new)
        state = {
            "index": self._index,
            "step": progress.step,
            "steps": progress.steps,
            "t": progress.t,
            "masked": sum(step == NOT_YET for step in unmasked_at),
            "positions": len(tokens),
            "unmasked": [[i, tokens[i], self._pieces[tokens[i]], unmasked_at[i]] for i in new],
            "ess": _number(progress.ess),
            "candidates": self._candidates,
            "energies": None if progress.energies is None else [_numbers(group) for group in progress.energies],
            "picked": None if progress.picked is None else list(progress.picked),
            "scored_step": progress.scored_step,
            "block": self._block,
            "denoiser_calls": progress.cost.denoiser_calls,
            "energy_calls": progress.cost.energy_calls,
        }
        if progress.candidate_tokens is not None and progress.scored_step != self._scored_step:
            self._scored_step = progress.scored_step
            state["candidate_tokens"] = self._shown_candidates(progress.candidate_tokens, len(progress.tokens))
        return state

    def _shown_candidates(self, found: CandidateTokens, length: int) -> dict[str, Any]:
        """Return the candidates at the shown positions, counted from the first of them, with the text of each token."""
        shown = range(length)[self._shown]
        at = [i for i, position in enumerate(found.positions) if position in shown]
        tokens = [[candidate[i] for i in at] for candidate in found.tokens]
        return {
            "positions": [found.positions[i] - shown.start for i in at],
            "groups": [found.groups[i] for i in at],
            "tokens": tokens,
            "texts": [[self._pieces[token] for token in candidate] for candidate in tokens],
        }


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    """Return the value, or None if it is not finite, which JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None
