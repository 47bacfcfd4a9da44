"""Schedules fall from one to zero with the weight that the NELBO needs; training times cover (0, 1) evenly."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.schedule import TRAINING_FLOOR, Cosine, LogLinear, Polynomial, draw_times

SCHEDULES = [LogLinear(), Cosine(), Polynomial(exponent=2.0), Polynomial(exponent=0.5), Polynomial(exponent=3.5)]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def times(count: int = 999) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)


@schedules
def test_alpha_falls_from_exactly_one_to_exactly_zero(schedule):
    ends = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [1.0, 0.0]
    assert schedule.alpha(torch.tensor([0.0, 1.0])).tolist() == [1.0, 0.0]
    alpha = schedule.alpha(torch.cat([torch.zeros(1), times(), torch.ones(1)]))
    assert bool((alpha.diff() < 0).all())


@schedules
def test_the_weight_is_minus_the_slope_of_alpha_over_what_is_masked(schedule):
    t = times().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    t = t.detach()
    torch.testing.assert_close(schedule.weight(t), -slope / (1 - schedule.alpha(t)), rtol=1e-5, atol=1e-12)


@schedules
def test_the_weight_loses_nothing_to_rounding_near_zero(schedule):
    """It is c / t there; an infinite one would make a NaN of a row in which nothing is masked."""
    tiny = torch.tensor([1e-18, 1e-15, 1e-6], dtype=torch.float64)
    slope = schedule.weight(tiny) * tiny
    torch.testing.assert_close(slope, slope[-1].expand(3), rtol=1e-9, atol=0)


@schedules
def test_the_last_step_unmasks_everything_and_any_step_a_share(schedule):
    t = times()
    assert torch.equal(schedule.unmask_probability(t, torch.zeros_like(t)), torch.ones_like(t))
    share = schedule.unmask_probability(t[1:], t[:-1])
    assert bool(((share > 0) & (share < 1)).all())
    assert torch.equal(schedule.unmask_probability(t, t), torch.zeros_like(t))


@schedules
def test_two_steps_unmask_as_much_as_one(schedule):
    """P(still masked at r | masked at t) is the same by way of s."""
    t, s, r = times()[2:], times()[1:-1], times()[:-2]
    direct = 1 - schedule.unmask_probability(t, r)
    torch.testing.assert_close(
        (1 - schedule.unmask_probability(t, s)) * (1 - schedule.unmask_probability(s, r)), direct
    )


@given(
    count=st.integers(1, 70),
    cuts=st.lists(st.integers(0, 70), max_size=6),
    seed=st.integers(0, 2**31),
    step=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_training_times_hit_every_stratum_of_the_global_batch_once_however_it_is_cut(count, cuts, seed, step):
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [draw_times(seed, step, torch.arange(a, b), count) for a, b in pairwise(edges)]
    t = torch.cat(parts)
    assert torch.equal(t, draw_times(seed, step, torch.arange(count), count))
    uniform = (t - TRAINING_FLOOR) / (1 - TRAINING_FLOOR)
    # Counted from the first time on, so that no time lies at the edge of a stratum.
    strata = ((uniform - uniform[0]) * count).round().long() % count
    assert strata.sort().values.tolist() == list(range(count))
    assert bool(((t > TRAINING_FLOOR) & (t < 1)).all())


@given(count=st.integers(1, 70), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_neighbouring_times_are_one_stratum_apart(count, seed):
    t = draw_times(seed, 0, torch.arange(count), count, floor=0.0).sort().values
    torch.testing.assert_close(t.diff(), torch.full((count - 1,), 1 / count, dtype=torch.float64))
    assert bool(((t * count).floor().long() == torch.arange(count)).all())


@given(rows=st.integers(2, 32), workers=st.integers(2, 16), step=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_workers_have_the_same_mean_of_times_up_to_a_row_where_their_number_of_rows_is_odd(rows, workers, step):
    t = draw_times(0, step, torch.arange(rows * workers), rows * workers, floor=0.0)
    most = rows % 2 / rows
    assert float((t.view(workers, rows).mean(dim=1) - t.mean()).abs().max()) <= most + 1e-9


@given(workers=st.sampled_from([2, 4]), step=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_workers_with_one_row_in_each_of_four_micro_steps_have_the_same_mean_of_times(workers, step):
    t = draw_times(0, step, torch.arange(4 * workers), 4 * workers, floor=0.0).view(4, workers)
    torch.testing.assert_close(t.mean(dim=0), t.mean().expand(workers))


@pytest.mark.parametrize(("row", "rows"), [(2, 4), (3, 4), (2, 3)])
def test_training_times_change_with_the_step_and_the_seed_and_are_uniform_over_steps(row, rows):
    batch_index = torch.arange(rows)
    first = draw_times(0, 0, batch_index, rows)
    assert not torch.equal(first, draw_times(0, 1, batch_index, rows))
    assert not torch.equal(first, draw_times(1, 0, batch_index, rows))
    drawn = torch.stack([draw_times(0, step, torch.tensor([row]), rows, floor=0.0) for step in range(2000)])
    counts = torch.histc(drawn, 10, 0, 1)
    assert ((counts - 200) ** 2 / 200).sum() < 34  # chi-square, 9 degrees of freedom, 1e-4
