import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.evaluation.equal_entropy import Point, nll_at_entropy
from edlm.evaluation.judged_quality import Average

DATA = Average(5.44, 0.0)
settings = st.lists(st.floats(0.1, 2.0).map(lambda x: round(x, 3)), min_size=2, max_size=8, unique=True)


def sweep(entropies: dict[float, float], slope: float = 2.0, offset: float = -6.0, error: float = 0.0) -> list[Point]:
    """Points on the line nll = offset + slope x entropy."""
    return [
        Point(setting, Average(offset + slope * entropy, error), Average(entropy, error))
        for setting, entropy in entropies.items()
    ]


@given(settings, st.floats(0.0, 1.0), st.floats(-3, 3))
def test_on_a_line_the_nll_is_that_of_the_line(at, where, slope):
    points = sweep({setting: 3 + setting for setting in at}, slope)
    target = 3 + min(at) + where * (max(at) - min(at))
    actual = nll_at_entropy(points, Average(target, 0.0))
    if not 3 + min(at) <= target <= 3 + max(at):  # by rounding
        return
    assert actual.nll is not None
    assert actual.reason is None
    assert actual.nll.mean == pytest.approx(-6 + slope * target)
    low, high = actual.between
    assert 3 + low <= target <= 3 + high


def test_settings_are_taken_in_order_and_neighbours_alone_matter():
    points = sweep({0.8: 5.0, 1.2: 5.8, 1.0: 5.5, 0.6: 4.0})
    points[3] = replace(points[3], nll=Average(100.0, 0.0))
    actual = nll_at_entropy(points, DATA)
    assert actual.between == (0.8, 1.0)
    assert actual.nll.mean == pytest.approx(-6 + 2 * 5.44)


@pytest.mark.parametrize("target", [3.9, 5.9])
def test_nothing_is_extrapolated(target):
    actual = nll_at_entropy(sweep({0.8: 4.0, 1.0: 5.8}), Average(target, 0.0))
    assert (actual.nll, actual.between) == (None, None)
    assert actual.reason == f"entropy {target} is outside the sweep's 4 to 5.8; widen the sweep"


def test_the_ends_of_a_sweep_and_its_points_belong_to_it():
    points = sweep({0.8: 4.0, 1.0: 5.0, 1.2: 6.0})
    for target, between in ((4.0, {0.8, 1.0}), (5.0, {0.8, 1.0, 1.2}), (6.0, {1.0, 1.2})):
        actual = nll_at_entropy(points, Average(target, 0.0))
        assert actual.nll.mean == pytest.approx(-6 + 2 * target)
        assert set(actual.between) <= between


def test_an_entropy_that_the_sweep_reaches_twice_has_no_one_nll():
    actual = nll_at_entropy(sweep({0.6: 5.0, 0.8: 5.6, 1.0: 5.2, 1.2: 6.0}), DATA)
    assert actual.nll is None
    assert actual.reason == "entropy 5.44 is reached more than once, at and after [0.6, 0.8, 1.0]"
    flat = nll_at_entropy(sweep({0.6: 5.44, 0.8: 5.44}), DATA)
    assert "more than once, at and after [0.6, 0.8]" in flat.reason


@pytest.mark.parametrize("points", [{}, {1.0: 5.44}])
def test_one_point_is_no_sweep(points):
    assert (
        nll_at_entropy(sweep(points), DATA).reason
        == f"{len(points)} points are no sweep; measure at two settings or more"
    )


def test_the_error_is_the_spread_of_what_is_interpolated():
    generator = torch.Generator().manual_seed(0)
    means, errors = (3.0, 4.5, 5.2, 5.8, 5.44), (0.02, 0.05, 0.03, 0.04, 0.01)

    def matched(values):
        first, two = (
            Point(float(i), Average(values[i], errors[i]), Average(values[2 + i], errors[2 + i])) for i in (0, 1)
        )
        return nll_at_entropy([first, two], Average(values[4], errors[4])).nll

    drawn = torch.tensor(means) + torch.tensor(errors) * torch.randn(4000, 5, generator=generator)
    spread = torch.tensor([matched(values).mean for values in drawn.tolist()]).std().item()
    assert matched(means).standard_error == pytest.approx(spread, rel=0.05)


def test_at_a_point_the_steeper_neighbour_sets_the_error():
    points = sweep({0.8: 4.0, 1.0: 5.0, 1.2: 6.0}, error=0.1)
    points[2] = replace(points[2], nll=Average(points[1].nll.mean + 10, 0.1))
    actual = nll_at_entropy(points, Average(5.0, 0.0))
    assert actual.between == (1.0, 1.2)
    assert actual.nll.standard_error == pytest.approx(math.hypot(0.1, 10 * 0.1))


def test_a_sweep_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"the setting 1\.0 stands twice"):
        nll_at_entropy([*sweep({1.0: 5.0}), *sweep({1.0: 6.0})], DATA)
    with pytest.raises(ValueError, match="a value is not finite"):
        nll_at_entropy(sweep({0.8: 5.0, 1.0: math.nan}), DATA)
