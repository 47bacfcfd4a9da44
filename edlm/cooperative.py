"""Cooperative work: a generator whose every `next` does a bounded part and whose return value is the result."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Bites = Generator[None, None, T]


def finished(bites: Bites[T]) -> T:
    """Run `bites` to its end without pausing and return its result."""
    while True:
        try:
            next(bites)
        except StopIteration as end:
            return end.value
