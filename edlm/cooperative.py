"""Work in bites: a generator whose every `next` does a bounded part, and whose return value is the result."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Bites = Generator[None, None, T]


def finished(bites: Bites[T]) -> T:
    """The result, all bites taken at once."""
    while True:
        try:
            next(bites)
        except StopIteration as end:
            return end.value
