"""Requests: the specification of one text, the limits of the engine, and the errors that end a request early."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edlm.config import NonNegative, Positive, PositiveFloat, config
from edlm.constraints.specification import AbstractSpecification
from edlm.sampling.sampler import Sampler


@config
class Limits:
    """Limits on concurrent and waiting work."""

    slots: Positive = 16
    """Rows that run concurrently."""
    waiting: NonNegative = 64
    """Texts that may wait in addition. 0: a text that finds no free slot is rejected."""
    step_seconds: PositiveFloat = 0.05
    """Seconds of work per engine step, after which arrivals and departures are handled."""
    patience_seconds: PositiveFloat = 10.0
    """Longest wait; a request that would wait longer is rejected."""


@dataclass(frozen=True)
class Request:
    """One text to generate: a function of these fields, except the key and the deadline, and of the model."""

    known: tuple[int | None, ...]
    """Tokens of a prompt, or of a whole text with None in its gaps."""
    max_tokens: int | None
    """Maximum number of tokens after the prompt; None: fill the gaps of `known`."""
    seed: int
    sampler: Sampler
    energy: str | None
    """None: the default of the bundle."""
    key: str = ""
    """API key of the request; keys share the work of an engine equally, however much each of them requests."""
    deadline: float = math.inf
    """In terms of `time.monotonic()`; a request that is unfinished by then ends as Expired."""
    stop: tuple[str, ...] = ()
    """Stop strings: the text after the prompt ends before the first of these; in a constrained one, none occurs."""
    logprobs: int | None = None
    """Record log p_theta of each token at the step that unmasks it, and of this number of likeliest tokens."""
    constraint: AbstractSpecification | None = None
    """What the text after the prompt satisfies, or the whole text with its gaps filled."""
    candidate_tokens: bool = False
    """Report the tokens of the candidates among which steps choose."""

    def __post_init__(self) -> None:
        if self.constraint is not None:
            self.sampler.require_candidates()
        if self.max_tokens is None and self.stop:
            raise ValueError("stop ends what follows a prompt; a text with holes has its length")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; at least 1 is written")
        if self.max_tokens is not None and None in self.known:
            raise ValueError("a prompt has no holes; to fill them, leave max_tokens out")
        if "" in self.stop:
            raise ValueError("a stop string is empty; every text ends before its first letter then")


class Full(Exception):
    """Rejection of new work, by a limit of the engine or because it accepts nothing new."""

    def __init__(self, retry_after_seconds: float, reason: str) -> None:
        super().__init__(f"{reason}; try again in {math.ceil(retry_after_seconds)} s")
        self.retry_after_seconds, self.reason = retry_after_seconds, reason


class Cancelled(Exception):
    """Cancellation of a request whose result is no longer needed."""


class Expired(Exception):
    """Deadline passed before the request finished."""


class NonFiniteText(FloatingPointError):
    """Logits or energies of one text that are not numbers or leave no candidate; other texts are unaffected."""


class OutOfMemory(Exception):
    """Step that does not fit the device's memory even in the smallest batch."""


class EngineFailed(Exception):
    """Failure or stop of the engine, which ends all its requests."""


def reason_of(error: BaseException) -> str:
    """Return the reason under which the statistics count a request that ended with `error`."""
    reasons: Sequence[tuple[type[BaseException], str]] = (
        (Cancelled, "cancelled"),
        (Expired, "expired"),
        (NonFiniteText, "broken"),
        (OutOfMemory, "out of memory"),
    )
    return next((reason for kind, reason in reasons if isinstance(error, kind)), "failed")
