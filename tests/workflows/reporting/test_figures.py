"""Every figure draws what its rows hold, names its axes, and leaves out in silence nothing that it cannot show."""

import io
import math
from itertools import cycle, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tests import measurements
from workflows.reporting.figures.bounds import (
    bound_calls_figure,
    bound_figure,
    bound_seconds_figure,
    gain_figure,
    levels,
)
from workflows.reporting.figures.calibration import auc_error, calibration_figure, proportion_error
from workflows.reporting.figures.curves import frontier, lowest
from workflows.reporting.figures.partition import partition_figure
from workflows.reporting.figures.quality import quality_calls_figure, quality_figure, quality_seconds_figure
from workflows.reporting.figures.quality_cost import (
    NORMALISED,
    OTHER,
    STEP,
    WHOLE,
    curves_of,
    families,
    quality_cost_figure,
)
from workflows.reporting.figures.style import ACCENTS, INK, energy_colours, spread
from workflows.reporting.figures.training import gain_by_time_figure, loss_figure
from workflows.reporting.figures.trajectory import distinct_figure, ess_figure
from workflows.reporting.quantities import BOUND, CALLS, STEPS

FEW = ("plain", "uniform", "data", "autoregressive", "conditional", "coar", "published-nce")
SUMMARY = measurements.summary()


def few(rows):
    return [row for row in rows if row["energy"] in FEW and row["steps"] in (0, 1, 4, 64) and row["candidates"] != 2]


BOUNDS, QUALITY = few(measurements.bounds()), few(measurements.quality())
TRAJECTORY = [row for row in measurements.trajectory() if row["energy"] in FEW and row["steps"] <= 8]
MATCHED = few(measurements.matched())
HELD_OUT = next(row for row in QUALITY if row["energy"] == "data")
FIGURES = {
    "bound": lambda: bound_figure(SUMMARY, BOUNDS),
    "bound by calls": lambda: bound_calls_figure(SUMMARY, BOUNDS),
    "bound by seconds": lambda: bound_seconds_figure(SUMMARY, BOUNDS),
    "gain": lambda: gain_figure(BOUNDS),
    "quality": lambda: quality_figure(QUALITY),
    "quality by calls": lambda: quality_calls_figure(QUALITY),
    "quality by seconds": lambda: quality_seconds_figure(QUALITY),
    "quality by cost": lambda: quality_cost_figure(SUMMARY, BOUNDS, MATCHED, measurements.cost(), HELD_OUT),
    "quality by cost, without texts": lambda: quality_cost_figure(SUMMARY, BOUNDS, [], [], None),
    "ess": lambda: ess_figure(TRAJECTORY),
    "distinct": lambda: distinct_figure(TRAJECTORY),
    "calibration": lambda: calibration_figure("step-blocks", measurements.calibration()),
    "partition": lambda: partition_figure(measurements.partition()),
    "loss": lambda: loss_figure(measurements.training()),
    "training gain": lambda: gain_by_time_figure(measurements.training()),
}


def panels(figure: Figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def drawn(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=40)
    return picture.getvalue()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_states_what_it_shows_and_names_its_axes(name):
    figure = FIGURES[name]()
    assert figure.get_suptitle()
    shown = panels(figure)
    # Panels that share an axis name it at the left and at the foot.
    assert any(axes.get_xlabel() and axes.get_ylabel() for axes in shown)
    for axes in shown:
        head = next(other for other in shown if other.get_subplotspec().colspan == axes.get_subplotspec().colspan)
        assert axes.get_title("left") or head.get_title("left") or len(shown) == 1
        assert not axes.spines["top"].get_visible()


@pytest.mark.parametrize("draw", [bound_figure, bound_calls_figure, bound_seconds_figure])
def test_each_energy_has_a_panel_below_the_overview(draw):
    titles = [axes.get_title("left") for axes in panels(draw(SUMMARY, BOUNDS))]
    assert titles[1:] == ["conditional", "coar", "published-nce", "uniform weights (control)"]


def test_ten_energies_have_ten_colours_and_keep_them():
    names = list(measurements.ENERGIES)
    assert len({energy_colours(names)[name] for name in names}) == 10
    assert len(set(ACCENTS)) == 10
    assert energy_colours(["a", "b"])["b"] == energy_colours(["a", "b", "c"])["b"]


def test_published_samplers_are_labelled_and_hollow():
    panel = panels(bound_figure(SUMMARY, BOUNDS))[3]
    assert any("published sampler" in text.get_text() for text in panel.texts)
    assert any(line.get_markerfacecolor() == "white" for line in panel.lines if line.get_linestyle() == "-.")


def test_published_plain_diffusion_stands_labelled_beside_ours():
    published = [row | {"published": True} for row in QUALITY if row["energy"] == "plain"]
    panel = panels(quality_figure([*QUALITY, *published]))[1]
    assert "plain, published sampler" in {text.get_text().strip() for text in panel.texts}


def test_bars_are_two_standard_errors():
    figure = bound_figure(SUMMARY, [row for row in BOUNDS if row["energy"] == "plain"])
    (bars,) = (one for one in panels(figure)[0].containers if hasattr(one, "has_yerr") and one.has_yerr)
    segments = np.concatenate(bars.lines[2][0].get_segments())
    assert np.allclose(segments[1::2, 1] - segments[::2, 1], 4 * 0.0075)


def test_the_entropy_of_a_known_source_stands_for_the_autoregressive_level():
    assert [level.name for level in levels(SUMMARY)] == ["NELBO, T = ∞", "AR model"]
    known = levels(SUMMARY | {"entropy_nats_per_token": 1.5})
    assert [(level.name, level.value) for level in known][1] == ("entropy of the source", 1.5)


def test_numbers_that_are_not_finite_are_left_out():
    values = cycle([math.nan, math.inf, -math.inf])

    def broken(rows, *names):
        return [row | dict.fromkeys(names, next(values)) if i % 2 else row for i, row in enumerate(rows)]

    bounds = broken(BOUNDS, "bound_nats_per_token", "standard_error", "gain_nats_per_token", "denoiser_calls")
    quality = broken(QUALITY, "nll_nats_per_token", "entropy_nats", "entropy_standard_error", "seconds_per_text")
    partition = broken(measurements.partition(), "low_nats_per_token", "high_standard_error")
    calibration = broken(measurements.calibration(), "auc")
    calibration[0] |= {"data_energies": [math.nan, -math.inf, 1.0], "sample_energies": [], "bins": []}
    for figure in (
        bound_figure(SUMMARY, bounds),
        bound_calls_figure(SUMMARY, bounds),
        gain_figure(bounds),
        quality_figure(quality),
        quality_seconds_figure(quality),
        ess_figure(broken(TRAJECTORY, "ess", "t")),
        partition_figure(partition),
        calibration_figure("step-blocks", calibration),
        loss_figure({"pretrain": {"loss_nats_per_token": {0: math.nan, 1: math.inf, 2: 2.0}}}),
    ):
        assert drawn(figure).startswith(b"\x89PNG")


def test_a_value_beyond_the_frame_is_marked_at_its_edge():
    worse = [row | {"bound_nats_per_token": 9.0} for row in BOUNDS if row["energy"] == "coar" and row["steps"] == 4]
    rows = [row for row in BOUNDS if row["energy"] in ("plain", "coar")] + worse
    panel = panels(bound_figure(SUMMARY, rows))[1]
    top = panel.get_ylim()[1]
    assert top < 9
    assert any(line.get_marker() == "^" and line.get_ydata()[0] == top for line in panel.lines)


def test_nothing_but_plain_diffusion_still_makes_a_figure():
    plain = [row for row in BOUNDS if row["energy"] == "plain"]
    assert len(panels(bound_figure(SUMMARY, plain))) == 1


def test_stages_without_curves_have_no_figure():
    assert loss_figure({"prepare": {}}) is None
    assert gain_by_time_figure({"pretrain": {"loss_nats_per_token": {0: 1.0}}}) is None


def test_the_frontier_holds_what_nothing_cheaper_beats():
    costs, values = (1, 2, 4, 4, 8), (3.0, 3.5, 2.0, 2.5, 2.0)
    rows = [
        BOUNDS[0] | {"denoiser_calls": cost, "energy_calls": 0, "bound_nats_per_token": value}
        for cost, value in zip(costs, values, strict=True)
    ]
    assert [CALLS.value(row) for row in frontier(rows, CALLS, BOUND)] == [1, 4]
    both = [row | {"steps": 1} for row in rows[:2]]
    assert [BOUND.value(row) for row in lowest(both, STEPS, BOUND)] == [3.0]


def columns_of(figure: Figure) -> dict[str, list]:
    """The panels of each family, from the top to the foot."""
    shown = panels(figure)
    titles = [axes.get_title("left") for axes in shown if axes.get_title("left")]
    return {name: shown[i :: len(titles)] for i, name in enumerate(titles)}


def test_quality_and_cost_stand_in_one_view_with_the_frontier_and_what_is_token_by_token():
    columns = columns_of(quality_cost_figure(SUMMARY, BOUNDS, MATCHED, measurements.cost(), HELD_OUT))
    assert {NORMALISED, WHOLE} <= set(columns)
    for calls, seconds, judged, _ in columns.values():
        assert calls.get_ylim() == seconds.get_ylim()
        stars = [line for line in calls.lines if line.get_marker() == "*"]
        assert [64.0] in [star.get_xdata().tolist() for star in stars]  # a call for each of 64 tokens
        band = next(line for line in seconds.lines if line.get_linewidth() == 7)
        assert all(a > b for a, b in pairwise(band.get_ydata()))
        assert judged.get_yscale() == "log"
        assert "NELBO, T = ∞" in {text.get_text() for text in calls.texts}
        assert "data" in {text.get_text() for text in judged.texts}
        assert any(line.get_color() == INK and len(line.get_xdata()) > 1 for line in calls.lines)  # plain diffusion
    named = {text.get_text() for text in columns[NORMALISED][-1].get_legend().get_texts()}
    assert {"plain diffusion", "conditional, k = 8", "conditional, exact"} <= named


def test_a_sampler_has_one_color_in_all_panels_where_the_texts_of_fewer_samplers_were_judged():
    judged = [row for row in MATCHED if (row["energy"], row["candidates"]) != ("conditional", 8)]
    assert len(judged) < len(MATCHED)
    columns = columns_of(quality_cost_figure(SUMMARY, BOUNDS, judged, measurements.cost(), HELD_OUT))
    for *_, last in columns.values():
        handles = last.get_legend().get_lines()
        assert len({to_hex(handle.get_color()) for handle in handles}) == len(handles)


def test_every_sampler_stands_in_the_column_of_its_family_and_other_distributions_in_one_of_their_own():
    actual = families(
        [
            {"energy": name}
            for name in ("plain", "nce", "step", "step, most certain first (another distribution)", "conditional", "b")
        ],
        [
            {"energy": "nce", "whole_sequence": True, "candidates": 0},
            {"energy": "step", "whole_sequence": False, "candidates": 2},
            {"energy": "conditional", "whole_sequence": False, "candidates": 0},
        ],
    )
    assert actual == {
        WHOLE: ["nce"],
        STEP: ["step", "b"],
        NORMALISED: ["conditional"],
        OTHER: ["step, most certain first (another distribution)"],
    }


def test_a_planned_sampler_is_in_the_family_of_its_energies_and_its_name_has_no_k():
    """The column `candidates` holds one number for all steps of a plan, and no step may have that k."""
    bounds = [
        {"energy": "step", "whole_sequence": False, "candidates": 2},
        {"energy": "conditional", "whole_sequence": False, "candidates": 0},
        *(
            {"energy": f"adaptive effort, {i} times plain", "whole_sequence": None, "candidates": 32}
            for i in (1.5, 2, 3)
        ),
    ]
    plans = (
        ["plain", "conditional, exact", "conditional, k = 2"],
        ["step, k = 2", "conditional, exact"],
        ["plain", "plain"],
    )
    effort = [{"energy": row["energy"], "plan": plan} for row, plan in zip(bounds[2:], plans, strict=True)]
    names = [row["energy"] for row in bounds]
    assert families(bounds, bounds, effort) == {STEP: ["step", *names[3:]], NORMALISED: ["conditional", names[2]]}
    row = next(row for row in BOUNDS if row["energy"] == "conditional") | {"energy": names[2], "candidates": 1}
    assert [curve.name for curve in curves_of([row], [names[2]], BOUND, {})] == [f"{names[2]}, k by plan"]


def test_samplers_of_a_family_have_colours_of_their_own():
    drawn = curves_of([row for row in BOUNDS if not row["published"]], ["conditional"], BOUND, {})
    assert len(drawn) > 2
    assert len({curve.colour for curve in drawn}) == len(drawn)


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.08))
def test_labels_stand_apart_in_their_order_and_inside(values, apart):
    positions = spread(values, apart)
    ordered = [position for _, position in sorted(zip(values, positions, strict=True))]
    assert all(b - a >= apart - 1e-9 for a, b in pairwise(ordered))
    assert all(-1e-9 <= position <= 1 + 1e-9 for position in positions)


def test_labels_that_do_not_collide_stay_and_two_that_do_move_alike():
    assert spread([0.9, 0.1], 0.05) == pytest.approx([0.9, 0.1])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_standard_errors_of_shares_and_areas_are_known_ones():
    assert proportion_error(0.5, 96) == pytest.approx(0.05)
    assert proportion_error(1.0, 10) > 0
    # Without information the area's variance is that of the Mann-Whitney statistic, but for its tie-free correction.
    assert auc_error(0.5, 100, 100) == pytest.approx(math.sqrt(201 / (12 * 100 * 100)), rel=1e-6)
    assert auc_error(1.0, 100, 100) == 0
    assert math.isnan(auc_error(0.7, 0, 10))
