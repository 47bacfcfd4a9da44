"""What a text will cost is known before it is written, in passes exactly enough and in seconds as measured."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from edlm.inference.cost_model import (
    FIRST_GUESS_SECONDS,
    PASS,
    CostModel,
    LatencyModel,
    NetworkPasses,
    of_canvas,
    of_step,
)
from edlm.interfaces import Model
from edlm.sampling.sampler import Sampler
from edlm.schedule import Cosine, LogLinear
from tests.engines import TableEnergy

MASKED, LENGTH, MASK = 7, 10, 99


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize(
    "sampler", [Sampler(steps=4, candidates=3), Sampler(steps=30, candidates=5, window=(0.2, 0.8))]
)
def test_what_a_canvas_will_cost_is_what_canvases_cost_on_average(sampler, schedule, drafts):
    energy = TableEnergy(lambda b, k: torch.zeros(b, k))
    energy.whole_sequence = drafts

    class Reader:
        mask = MASK

    model = Model(Reader, energy, schedule)  # pyright: ignore[reportArgumentType]
    rows, costs = 2000, torch.zeros(3)
    xt = torch.full((rows, LENGTH), MASK)
    xt[:, MASKED:] = 1
    seeds, times = torch.arange(rows), sampler.times()
    for i in range(sampler.steps, 0, -1):
        t, s = times[i].expand(rows), times[i - 1].expand(rows)
        now = sampler.choose_positions(xt, t, s, torch.full((rows,), i), seeds, model)
        xt = torch.where(now.unmasked, 1, xt)
        scores = bool(sampler.may_score(times[i], energy))
        for count in now.unmasked.sum(dim=1)[now.moves].tolist():
            work = of_step(count / LENGTH, scores, sampler, energy)
            costs += torch.tensor([work.passes, work.candidates, work.scoring_steps])
    expected = of_canvas(MASKED, LENGTH, sampler, model)
    assert (costs / rows).tolist() == pytest.approx(
        [expected.passes, expected.candidates, expected.scoring_steps], rel=0.03
    )


def test_before_anything_was_measured_there_is_a_guess():
    assert LatencyModel().seconds(NetworkPasses(3.0), "step", False, 1) == pytest.approx(3 * FIRST_GUESS_SECONDS)
    assert LatencyModel().seconds(NetworkPasses(1.0, 4.0, 1.0), "step", True, 1) == pytest.approx(
        4 * FIRST_GUESS_SECONDS
    )


@given(start=st.floats(0, 1), each=st.floats(0.01, 1), rows=st.lists(st.integers(1, 16), min_size=2, max_size=9))
def test_the_start_of_a_call_is_reported_from_its_rows_once_calls_differ(start, each, rows):
    assume(max(rows) > 2 * min(rows))
    assume(each * sum(rows) > 0.2 * (start * len(rows) + each * sum(rows)))
    price = CostModel()
    price.measured(1, 100.0)  # the first call, which made everything ready
    for count in rows:
        price.measured(count, start + each * count)
    assert price.parts == pytest.approx((start, each), abs=1e-6)


def test_rows_of_a_batch_share_the_start_of_its_call_and_calls_that_are_alike_show_nothing_of_it():
    latency = LatencyModel()
    for _ in range(2):
        latency.measured(PASS, 1, 0.11)
        assert latency.seconds(NetworkPasses(2.0), "", False, 16) == pytest.approx(0.22)
    latency.measured(PASS, 16, 0.26)
    assert latency.seconds(NetworkPasses(2.0), "", False, 1) == pytest.approx(0.22)
    assert latency.seconds(NetworkPasses(2.0), "", False, 10) == pytest.approx(0.04)


def test_what_cooperative_work_divides_is_not_the_start_of_a_call():
    latency = LatencyModel()
    for units in (1.0, 1.0, 8.0):
        latency.measured("step", units, 0.5 + 0.05 * units)
    assert latency.divisible(NetworkPasses(1.0, 8.0, 1.0), "step", False) == pytest.approx(0.4)


def test_a_line_that_falls_is_not_believed():
    price = CostModel()
    for units, seconds in ((1.0, 2.0), (1.0, 2.0), (9.0, 1.0)):
        price.measured(units, seconds)
    start, each = price.parts
    assert each > 0
    assert start >= 0


def test_what_is_measured_replaces_what_was_measured_before():
    latency = LatencyModel()
    for seconds in [1.0] * 50 + [3.0] * 200:
        latency.measured("step", 10.0, seconds)
    assert latency.seconds(NetworkPasses(0.0, 1.0, 1.0), "step", False, 1) == pytest.approx(0.3, rel=0.01)
