"""Chunks of the vocabulary as small as they can be."""

import contextlib
import functools
from collections.abc import Iterator

from edlm.models import readout, summed_log_p


@contextlib.contextmanager
def small_chunks() -> Iterator[list[int]]:
    """Let an LM head compute the fewest positions at once, in as many chunks as large vocabularies need; count them."""
    counts, whole, compute, summed = [0], readout.CHUNK, readout.checkpoint, summed_log_p._Chunks.add

    def counted(chunk, *given, **settings):
        counts[0] += 1
        return chunk(*given, **settings)

    readout.CHUNK, readout.checkpoint = 1, functools.partial(counted, compute)
    summed_log_p._Chunks.add = lambda *given: counted(summed, *given)
    try:
        yield counts
    finally:
        readout.CHUNK, readout.checkpoint, summed_log_p._Chunks.add = whole, compute, summed
