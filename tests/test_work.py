"""What a text will cost is known before it is written, in passes exactly enough and in seconds as measured."""

import pytest
import torch

from edlm.sampler import Sampler
from edlm.schedule import Cosine, LogLinear
from edlm.work import FIRST_GUESS_SECONDS, PASS, Pace, Work, of_canvas, of_step
from tests.engines import Table

MASKED, LENGTH, MASK = 7, 10, 99


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize(
    "sampler", [Sampler(steps=4, candidates=3), Sampler(steps=30, candidates=5, window=(0.2, 0.8))]
)
def test_what_a_canvas_will_cost_is_what_canvases_cost_on_average(sampler, schedule, drafts):
    energy = Table(lambda b, k: torch.zeros(b, k))
    energy.drafts = drafts

    class Reader:
        mask = MASK

    rows, costs = 2000, torch.zeros(2)
    xt = torch.full((rows, LENGTH), MASK)
    xt[:, MASKED:] = 1
    seeds, times = torch.arange(rows), sampler.times()
    for i in range(sampler.steps, 0, -1):
        t, s = times[i].expand(rows), times[i - 1].expand(rows)
        now = sampler.reveal(xt, t, s, torch.full((rows,), i), Reader, schedule, seeds)  # pyright: ignore
        xt = torch.where(now.revealed, 1, xt)
        weighed = bool(sampler.weighs(times[i], energy))
        for count in now.revealed.sum(dim=1)[now.moves].tolist():
            work = of_step(count / LENGTH, weighed, sampler, energy)
            costs += torch.tensor([work.passes, work.candidates])
    expected = of_canvas(MASKED, LENGTH, sampler, energy, schedule)
    assert (costs / rows).tolist() == pytest.approx([expected.passes, expected.candidates], rel=0.03)


def test_before_anything_was_measured_there_is_a_guess():
    assert Pace().seconds(Work(3.0), "step", False, 1) == pytest.approx(3 * FIRST_GUESS_SECONDS)
    assert Pace().seconds(Work(1.0, 4.0), "step", True, 1) == pytest.approx(4 * FIRST_GUESS_SECONDS)


def test_seconds_are_those_of_the_batch_and_else_of_the_next_smaller_one():
    pace = Pace()
    pace.measured(PASS, 1, 1, 0.5)
    assert pace.seconds(Work(2.0), "", False, 16) == pytest.approx(1.0)
    pace.measured(PASS, 16, 16, 1.6)
    assert pace.seconds(Work(2.0), "", False, 16) == pytest.approx(0.2)
    assert pace.seconds(Work(2.0), "", False, 9) == pytest.approx(1.0)
    assert pace.seconds(Work(2.0), "", False, 100) == pytest.approx(0.2)


def test_what_is_measured_replaces_what_was_measured_before():
    pace = Pace()
    for seconds in [1.0] * 5 + [3.0] * 60:
        pace.measured("step", 10.0, 1, seconds)
    assert pace.seconds(Work(0.0, 1.0), "step", False, 1) == pytest.approx(0.3, rel=0.01)
