"""The states of a canvas on its way, as one client is told of them: each what it has not been told yet."""

import math
from collections.abc import Sequence
from typing import Any

from cluster.http.served_model import TokenText
from edlm.inference.text import NOT_YET, Progress
from edlm.sampling.sampler import Sampler


class DenoisingEvents:
    """Of one text the places `shown`; a client that misses states misses nothing that was revealed."""

    def __init__(self, index: int, pieces: TokenText, sampler: Sampler, block: int | None, shown: slice) -> None:
        self._index, self._pieces, self._shown = index, pieces, shown
        self._candidates, self._block = sampler.candidates, block
        self._told: set[int] = set()
        self._step: int | None = None

    def state(self, frame: Progress) -> dict[str, Any] | None:
        """What was revealed since the state before, and the latest weighing; None where `frame` is that state."""
        if frame.step == self._step:
            return None
        self._step = frame.step
        tokens, revealed_at = frame.tokens[self._shown], frame.revealed_at[self._shown]
        new = [i for i, step in enumerate(revealed_at) if step != NOT_YET and i not in self._told]
        self._told.update(new)
        return {
            "index": self._index,
            "step": frame.step,
            "steps": frame.steps,
            "t": frame.t,
            "masked": sum(step == NOT_YET for step in revealed_at),
            "positions": len(tokens),
            "revealed": [[i, tokens[i], self._pieces[tokens[i]], revealed_at[i]] for i in new],
            "ess": _number(frame.ess),
            "candidates": self._candidates,
            "energies": None if frame.energies is None else [_numbers(group) for group in frame.energies],
            "picked": None if frame.picked is None else list(frame.picked),
            "weighed_step": frame.weighed_step,
            "block": self._block,
            "denoiser_calls": frame.tally.denoiser_calls,
            "energy_calls": frame.tally.energy_calls,
        }


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    """The value where it is a number that JSON can write."""
    return value if value is not None and math.isfinite(value) else None
