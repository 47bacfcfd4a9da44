"""Every uniform is a function of its own key and index, and those of different keys know nothing of each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm import rng as streams
from edlm.rng import Purpose, seeds, uniforms

keys = st.integers(-(2**63), 2**63 - 1)
sizes = st.integers(1, 5)
N = 40_000


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@given(seed=keys, step=keys, row=keys, purpose=st.sampled_from(Purpose), shape=st.lists(sizes, max_size=3))
@settings(max_examples=60, deadline=None)
def test_uniforms_lie_strictly_between_zero_and_one_whatever_the_key(seed, step, row, purpose, shape):
    u = uniforms(seed, step, row, purpose, tuple(shape))
    assert u.dtype == torch.float64
    assert u.shape == tuple(shape)
    assert bool(((u > 0) & (u < 1)).all())
    assert torch.equal(u, uniforms(seed, step, row, purpose, tuple(shape)))
    integers = seeds(seed, step, row, purpose, tuple(shape))
    assert integers.dtype == torch.int64
    assert bool((integers >= 0).all())


@given(seed=keys, inner=st.tuples(sizes, sizes), more=st.tuples(sizes, sizes))
@settings(max_examples=60, deadline=None)
def test_the_value_at_an_index_does_not_depend_on_the_shape_that_was_asked_for(seed, inner, more):
    small = uniforms(seed, 3, 5, Purpose.MASK, inner)
    large = uniforms(seed, 3, 5, Purpose.MASK, (inner[0] + more[0], inner[1] + more[1]))
    assert torch.equal(large[: inner[0], : inner[1]], small)


@given(
    seed=st.lists(keys, min_size=1, max_size=6), step=st.lists(keys, min_size=6, max_size=6), row=keys, chosen=st.data()
)
@settings(max_examples=60, deadline=None)
def test_a_rows_numbers_do_not_depend_on_the_rows_beside_it(seed, step, row, chosen):
    steps = step[: len(seed)]
    whole = uniforms(torch.tensor(seed), torch.tensor(steps), row, Purpose.UNMASK, (4,))
    order = chosen.draw(st.permutations(range(len(seed))))
    for i in order:
        assert torch.equal(uniforms(seed[i], steps[i], row, Purpose.UNMASK, (4,)), whole[i])
    permuted = uniforms(torch.tensor(seed)[order], torch.tensor(steps)[order], row, Purpose.UNMASK, (4,))
    assert torch.equal(permuted, whole[order])


@pytest.mark.parametrize("key", ["seed", "step", "row", "index", "second index"])
def test_uniforms_are_uniform_along_every_part_of_the_key(key):
    every = torch.arange(N)
    u = {
        "seed": lambda: uniforms(every, 1, 2, Purpose.MASK),
        "step": lambda: uniforms(0, every, 2, Purpose.MASK),
        "row": lambda: uniforms(0, 1, every, Purpose.MASK),
        "index": lambda: uniforms(0, 1, 2, Purpose.MASK, (N,)),
        "second index": lambda: uniforms(0, 1, 2, Purpose.MASK, (2, N))[1],
    }[key]()
    assert u.shape == (N,)
    cells = 100
    counts = torch.histc(u, cells, 0, 1)
    chi_square = ((counts - N / cells) ** 2 / (N / cells)).sum().item()
    assert 40 < chi_square < 180  # 99 degrees of freedom; too even is as suspicious as too uneven
    assert abs(correlation(u[1:], u[:-1])) < 4 / math.sqrt(N)
    pairs = (u[1:] * 10).floor() * 10 + (u[:-1] * 10).floor()
    counts = torch.bincount(pairs.long(), minlength=100).double()
    assert ((counts - (N - 1) / 100) ** 2 / ((N - 1) / 100)).sum() < 180
    assert u.unique().numel() == N


def test_streams_of_different_purposes_steps_rows_and_seeds_are_uncorrelated():
    keyed = {(seed, 1, 2, purpose): None for seed in (0, 1, 2) for purpose in Purpose}
    keyed |= {(0, 2, 2, Purpose.MASK): None, (0, 1, 3, Purpose.MASK): None, (1, 0, 2, Purpose.MASK): None}
    streams = torch.stack([uniforms(*key, (N,)) for key in keyed])
    correlations = torch.corrcoef(streams).fill_diagonal_(0).abs()
    assert correlations.max() < 5 / math.sqrt(N), (correlations == correlations.max()).nonzero()


def test_seeds_and_the_streams_that_they_start_do_not_repeat():
    inner = seeds(0, 0, torch.arange(N), Purpose.REPEAT)
    assert inner.unique().numel() == N
    u = uniforms(inner, 0, 0, Purpose.CANDIDATE)
    assert abs(correlation(u, uniforms(0, 0, torch.arange(N), Purpose.REPEAT))) < 4 / math.sqrt(N)
    assert abs(u.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / N)


def test_the_numbers_are_these_for_ever():
    """A text, a checkpoint's noise and a published figure are named by their seed: the streams may never change."""
    actual = uniforms(torch.tensor([0, 1]), 2, 3, Purpose.CANDIDATE, (2,))
    expected = torch.tensor(
        [[0.7833603134541959, 0.7822787746083394], [0.016018836361434086, 0.4848905305914587]], dtype=torch.float64
    )
    assert torch.equal(actual, expected)
    assert seeds(0, 2, 3, Purpose.CANDIDATE).item() == 3111487760204657705


@given(key=st.lists(keys, min_size=1, max_size=8), bits=st.integers(1, 63))
@settings(max_examples=60, deadline=None)
def test_integers_of_torch_as_an_accelerator_has_them_make_the_bits_of_numpy(key, bits):
    signed = torch.tensor(key)
    words = signed.numpy().view(np.uint64)
    for name, arguments in {"_mix": (), "_shift_right": (bits,), "_spread": ((3, 2),), "_unit": ()}.items():
        ours, theirs = (streams._tensor(getattr(streams, name)(z, *arguments)) for z in (signed, words))
        assert torch.equal(ours, theirs), name
    assert torch.equal(streams._tensor(streams._like(streams._GOLDEN, signed) * signed),
                       streams._tensor(streams._like(streams._GOLDEN, words) * words))  # fmt: skip


def test_keys_broadcast_against_one_another_and_large_seeds_are_their_own():
    u = uniforms(torch.tensor([[1], [2]]), torch.tensor([3, 4, 5]), 6, Purpose.PICK, (2,))
    assert u.shape == (2, 3, 2)
    for i, j in ((0, 0), (1, 2)):
        assert torch.equal(u[i, j], uniforms(1 + i, 3 + j, 6, Purpose.PICK, (2,)))
    assert uniforms(2**63 - 1, 0, 0, Purpose.PICK) != uniforms(-(2**63), 0, 0, Purpose.PICK)
    assert torch.equal(uniforms(-1, 0, 0, Purpose.PICK), uniforms(torch.tensor(-1), 0, 0, Purpose.PICK))
    assert seeds(1, 2, 3, Purpose.PICK, (4,)).unique().numel() == 4


def test_every_purpose_has_the_number_that_it_always_had():
    assert [purpose.value for purpose in Purpose] == list(range(1, len(Purpose) + 1))
    assert (Purpose.TIME, Purpose.CANDIDATE, Purpose.REMASK) == (1, 5, 19)
