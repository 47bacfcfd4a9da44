"""Rows of a batch are those of its step and seed, however workers divide it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data.batches import Batches, whole
from edlm.data.token_file import TokenFile


def counting(count: int) -> TokenFile:
    """Tokens that say where they stand."""
    return TokenFile(np.arange(count, dtype="<u4"), np.zeros(1, dtype=np.int64), vocabulary=count, separator=None)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(0, 50), st.integers(0, 2**31))
def test_any_division_among_workers_gives_the_same_rows(draw, batch, step, seed):
    batches = Batches(counting(100), length=7, batch=batch, seed=seed)
    cuts = sorted({0, batch, *draw.draw(st.lists(st.integers(0, batch)))})
    parts = [batches.rows(step, start, stop) for start, stop in pairwise(cuts)]
    together = batches.rows(step, 0, batch)
    assert torch.equal(torch.cat([part.tokens for part in parts]), together.tokens)
    assert torch.equal(torch.cat([part.batch_index for part in parts]), torch.arange(batch))
    assert (together.step, together.global_batch_size) == (step, batch)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**31))
def test_an_epoch_is_each_row_of_consecutive_tokens_once(count, batch, seed):
    length = 3
    batches = Batches(counting(count * length + 2), length, batch, seed)
    steps = range(2 * count)
    starts = torch.cat([batches.rows(step, 0, batch).tokens for step in steps])[: 2 * count]
    assert torch.equal(starts, starts[:, :1] + torch.arange(length))
    for epoch in starts[:, 0].split(count):
        assert sorted(epoch.tolist()) == list(range(0, count * length, length))


def test_the_order_depends_on_the_seed_and_changes_with_the_epoch():
    def order(seed, step):
        return Batches(counting(300), length=3, batch=100, seed=seed).rows(step, 0, 100).tokens[:, 0].tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, step)) for seed in range(3) for step in range(3)}) == 9


def test_batch_indices_outside_the_batch_are_refused():
    batches = Batches(counting(100), length=10, batch=4, seed=0)
    for start, stop in ((0, 5), (-1, 2), (3, 2)):
        with pytest.raises(ValueError, match=f"batch indices {start} to {stop} are not within a batch of 4 rows"):
            batches.rows(0, start, stop)


def test_a_file_that_fills_no_row_is_refused():
    with pytest.raises(ValueError, match="9 tokens do not fill one row of length 10"):
        Batches(counting(9), length=10, batch=1, seed=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50))
def test_a_measure_looks_at_rows_spread_evenly_over_the_split(count, limit):
    rows = whole(counting(count * 3 + 1), 3, limit)
    chosen = rows[:, 0] // 3
    assert rows.shape == (min(count, limit), 3)
    assert torch.equal(rows, chosen[:, None] * 3 + torch.arange(3))
    assert chosen[0] == 0
    gaps = torch.cat([chosen, torch.tensor([count])]).diff()
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
