import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data.shuffle import permuted

counts = st.integers(1, 300)
keys = st.integers(0, 2**31)


def order(count: int, seed: int, epoch: int) -> list[int]:
    return permuted(torch.arange(count), count, seed, torch.full((count,), epoch)).tolist()


@settings(max_examples=40, deadline=None)
@given(counts, keys, st.integers(0, 1000))
def test_every_epoch_has_each_row_once(count, seed, epoch):
    assert sorted(order(count, seed, epoch)) == list(range(count))


@settings(max_examples=40, deadline=None)
@given(counts, keys, st.data())
def test_a_row_does_not_depend_on_what_is_asked_for_beside_it(count, seed, data):
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1)))
    epochs = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(chosen), max_size=len(chosen))))
    expected = [order(count, seed, epoch)[index] for index, epoch in zip(chosen, epochs.tolist(), strict=True)]
    assert permuted(chosen, count, seed, epochs).tolist() == expected


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(order(100, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize(("count", "limit"), [(3, 18.4), (6, 25.7), (13, 39.1), (40, 80.1)])
def test_every_row_is_equally_likely_at_every_batch_index(count, limit):
    epochs = 4000
    index, epoch = torch.arange(count).repeat(epochs), torch.arange(epochs).repeat_interleave(count)
    drawn = permuted(index, count, 0, epoch).view(epochs, count)
    for position in range(count):
        hits = torch.bincount(drawn[:, position], minlength=count)
        chi_squared = ((hits - epochs / count) ** 2 / (epochs / count)).sum()
        assert chi_squared < limit  # count - 1 degrees of freedom, one in ten thousand


def test_neighbours_are_parted():
    """In a fair order of 1,000 rows one pair of neighbours in 500 stays together."""
    drawn = torch.tensor([order(1000, 0, epoch) for epoch in range(20)])
    together = (drawn.diff(dim=1).abs() == 1).double().mean()
    assert 0.001 < together < 0.003


def test_the_order_of_a_corpus_of_any_size_is_asked_for_row_by_row():
    count = 10**12
    assert 0 <= permuted(torch.tensor([count - 1]), count, 3, torch.tensor([0])).item() < count
