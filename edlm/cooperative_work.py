"""Cooperative work: computation in bounded parts, so that one thread can serve other requests in between.

The protocol is Python's own. A function that does cooperative work is a generator: each `yield` is a pause and passes
nothing in either direction, and the value that it returns is the result. `yield from` runs one such function inside
another and returns its result; `run_to_end` runs it without pausing; `edlm.inference.engine.InferenceEngine.run` lets
denoising steps of other requests run in the pauses. Calling the function only creates the generator: nothing is
computed, and no error is raised, before the first `next`. Closing it between two parts abandons the work.
"""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Cooperative = Generator[None, None, T]


def run_to_end(work: Cooperative[T]) -> T:
    """Run `work` to its end without pausing and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
