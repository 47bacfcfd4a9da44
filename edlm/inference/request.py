"""Jobs: what one text needs to be written, and the ways in which it may not come to its end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edlm.config import NonNegative, Positive, PositiveFloat, config
from edlm.sampling.sampler import Sampler


@config
class Limits:
    """How much is on its way at once, and how much may wait."""

    slots: Positive = 16
    """Rows that are on their way at once."""
    waiting: NonNegative = 64
    """Texts that may wait beside them. 0: whoever finds no place is refused."""
    turn_seconds: PositiveFloat = 0.05
    """Work of one turn, after which whoever came or left is seen to."""
    patience_seconds: PositiveFloat = 10.0
    """Nobody is let in who would wait longer."""


@dataclass(frozen=True)
class Request:
    """One text to write. It is a function of what stands here, but for the key and the deadline, and of the model."""

    known: tuple[int | None, ...]
    """The tokens of a prompt, or a whole text with None in its holes."""
    max_tokens: int | None
    """How many tokens follow the prompt at most; None: the holes of `known` are filled."""
    seed: int
    sampler: Sampler
    energy: str | None
    """None: the bundle's own."""
    key: str
    """Whose it is: keys share the work alike, however much each of them asks for."""
    deadline: float
    """By `time.monotonic()`: what is not finished by then ends as Expired."""
    stop: tuple[str, ...] = ()
    """The text that follows the prompt ends before the first of these."""

    def __post_init__(self) -> None:
        if self.max_tokens is None and self.stop:
            raise ValueError("stop ends what follows a prompt; a text with holes has its length")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; at least 1 is written")
        if self.max_tokens is not None and None in self.known:
            raise ValueError("a prompt has no holes; to fill them, leave max_tokens out")
        if "" in self.stop:
            raise ValueError("a stop string is empty; every text ends before its first letter then")


class Full(Exception):
    """As much waits as may, or nothing new is begun."""

    def __init__(self, retry_after_seconds: float, reason: str) -> None:
        super().__init__(f"{reason}; try again in {math.ceil(retry_after_seconds)} s")
        self.retry_after_seconds, self.reason = retry_after_seconds, reason


class Cancelled(Exception):
    """Nobody wants this text any more."""


class Expired(Exception):
    """Its deadline passed before it was finished."""


class BrokenRow(FloatingPointError):
    """Its logits or energies are not numbers, or leave nothing to choose; other texts are none the worse."""


class OutOfMemory(Exception):
    """Even in the smallest batch its step does not fit the device's memory."""


class EngineFailed(Exception):
    """The engine died or was stopped, and its texts with it."""


def reason_of(error: BaseException) -> str:
    """Under what a text that came to no end is counted."""
    reasons: Sequence[tuple[type[BaseException], str]] = (
        (Cancelled, "cancelled"),
        (Expired, "expired"),
        (BrokenRow, "broken"),
        (OutOfMemory, "out of memory"),
    )
    return next((reason for kind, reason in reasons if isinstance(error, kind)), "failed")
