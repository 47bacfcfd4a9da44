"""Arguments of the Python methods, checked: a value of the wrong type or size is refused by its name."""

import operator
from collections.abc import Sequence
from typing import SupportsIndex

from edlm.config import ConfigurationError


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the stop strings as a tuple; raise ConfigurationError for what is neither a text nor a list of texts."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(stop, str) for stop in stops):
        raise ConfigurationError(f"stop is a text or a list of texts; got {short(stop)}")
    return tuple(stops)


def interval(window: Sequence[float]) -> tuple[float, float]:
    """Return the two times of a window; raise ConfigurationError for anything else."""
    if not isinstance(window, Sequence) or len(window) != 2:
        raise ConfigurationError(f"window is (from, to), two times from 0 to 1; got {short(window)}")
    return window[0], window[1]


def is_count(value: object) -> bool:
    """Return whether the value is an integer of at least 1."""
    return isinstance(value, SupportsIndex) and operator.index(value) >= 1


def integer(name: str, value: SupportsIndex, least: int = 1, most: int | None = None) -> int:
    """Return the value as an int. Raise ConfigurationError naming it if it is none or lies outside the range."""
    allowed = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigurationError(f"{name} is {short(value)}; give {allowed}") from None
    if number < least or (most is not None and number > most):
        raise ConfigurationError(f"{name} is {number}; give {allowed}")
    return number


def short(value: object) -> str:
    """Return how Python writes the value, cut off after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
