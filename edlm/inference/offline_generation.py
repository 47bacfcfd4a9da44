"""Running sequences to their end in the calling thread, without an engine."""

import math
from collections.abc import Iterator, Sequence

from edlm.inference.batch_executor import BatchExecutor
from edlm.inference.sequence import RunningSequence

ROWS = 16  # texts per pass of the denoiser


def run_sequences(sequences: Sequence[RunningSequence], rows: int = ROWS) -> Iterator[None]:
    """Take all steps of the sequences, at most `rows` of them in one pass, and yield after every pass.

    Raise the error of the first sequence that fails: NonFiniteText, or OutOfMemory.
    """
    executor = BatchExecutor(rows, step_seconds=math.inf)
    while running := [sequence for sequence in sequences if not sequence.finished][:rows]:
        for sequence, result, row in executor.step(running):
            if isinstance(result, Exception):
                raise result
            sequence.apply(result, row)
        yield
