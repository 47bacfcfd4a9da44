"""Queue admission: whether the engine accepts new work, given the length of its queue and the estimated wait."""

from collections.abc import Mapping

from edlm.inference.request import Full, Limits
from edlm.inference.scheduler import estimated_wait

LEAST_RETRY_SECONDS = 1.0


def full(reason: str, retry_after_seconds: float) -> Full:
    """Return the error of rejected work; a client is never told to retry at once."""
    return Full(max(LEAST_RETRY_SECONDS, retry_after_seconds), reason)


def rejection(
    limits: Limits,
    entries: int,
    backlog: Mapping[str, float],
    key: str,
    seconds: float,
    seconds_left: float,
    count: int,
) -> Full | None:
    """Return why `count` requests of `key` are rejected; None if they are accepted. An idle engine accepts always.

    Rejected are requests for which the queue has no room (`waiting`), that would wait for longer than
    `limits.patience_seconds` (`patience`), or that could not finish in time (`deadline`).

    Args:
        limits: Limits of the engine.
        entries: Number of requests that run or wait.
        backlog: Estimated seconds of their work, by key.
        key: Key of the new requests.
        seconds: Estimated seconds of their work.
        seconds_left: Seconds until the earliest deadline of the new requests.
        count: Number of new requests.
    """
    wait = estimated_wait(backlog, key, seconds)
    if entries + count > limits.slots + limits.waiting:
        return full("waiting", wait)
    if wait > limits.patience_seconds:
        return full("patience", wait - limits.patience_seconds)
    if wait > 0 and wait + seconds > seconds_left:
        return full("deadline", wait + seconds - seconds_left)
    return None
