"""Rows that are read ahead are those that are asked for, and their errors come where they are."""

import threading

import numpy as np
import pytest
import torch

from edlm.data.batches import Batches
from edlm.data.read_ahead import STEPS, ReadAhead
from edlm.data.token_file import TokenFile

BATCH, MICRO = 4, 2
WAIT = 3  # seconds at most for what must happen


def batches() -> Batches:
    tokens = TokenFile(np.arange(300, dtype="<u4"), np.zeros(1, dtype=np.int64), vocabulary=300, separator=None)
    return Batches(tokens, length=3, batch=BATCH, seed=1)


class GatedRows:
    """Rows that are read once a gate is open, and what was asked for."""

    def __init__(self) -> None:
        self.open, self.asked, self._changed = threading.Event(), [], threading.Condition()
        self.timed_out = 0

    def rows(self, step, start, stop):
        with self._changed:
            self.asked.append((step, start, stop))
            self._changed.notify_all()
        self.timed_out += not self.open.wait(WAIT)
        return batches().rows(step, start, stop)

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, WAIT)


def test_rows_are_the_same_from_any_first_step_in_micro_steps():
    for first in (0, 7):
        with ReadAhead(batches().rows, steps=20) as ahead:
            for step in range(first, 20):
                for start in range(0, BATCH, MICRO):
                    found, expected = ahead(step, start, start + MICRO), batches().rows(step, start, start + MICRO)
                    assert torch.equal(found.tokens, expected.tokens)
                    assert (found.step, found.batch_index.tolist()) == (step, expected.batch_index.tolist())


def test_the_next_steps_are_read_while_one_is_computed_and_each_once():
    gate = GatedRows()
    gate.open.set()
    with ReadAhead(gate.rows, steps=100) as ahead:
        ahead(0, 0, BATCH)  # its step is computed now
        gate.wait_for(1 + STEPS)
        assert sorted(gate.asked) == [(step, 0, BATCH) for step in range(1 + STEPS)]
        ahead(1, 0, BATCH)
        gate.wait_for(2 + STEPS)
        assert sorted(gate.asked) == [(step, 0, BATCH) for step in range(2 + STEPS)]


def test_nothing_is_read_beyond_the_last_step():
    gate = GatedRows()
    gate.open.set()
    with ReadAhead(gate.rows, steps=3) as ahead:
        for step in range(3):
            ahead(step, 0, BATCH)
    assert sorted(gate.asked) == [(step, 0, BATCH) for step in range(3)]


def test_an_error_is_raised_at_the_step_whose_rows_it_prevents():
    def rows(step, start, stop):
        if step == 2:
            raise ValueError("block 2 is damaged")
        return batches().rows(step, start, stop)

    with ReadAhead(rows, steps=10) as ahead:
        ahead(0, 0, BATCH)
        ahead(1, 0, BATCH)
        with pytest.raises(ValueError, match="block 2 is damaged"):
            ahead(2, 0, BATCH)


def test_the_end_does_not_wait_for_what_is_being_read():
    gate = GatedRows()

    def rows(step, start, stop):
        return batches().rows(step, start, stop) if step == 0 else gate.rows(step, start, stop)

    with ReadAhead(rows, steps=100) as ahead:
        ahead(0, 0, BATCH)
        gate.wait_for(STEPS)
    assert gate.timed_out == 0
    gate.open.set()
