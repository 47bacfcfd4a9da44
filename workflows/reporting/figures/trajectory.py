"""Trajectory figures: effective sample size and number of distinct candidates, from t = 1 to 0."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflows.reporting.figures.style import End, ReferenceLine, draw_levels, finish, label_ends, line, sheet
from workflows.reporting.quantities import Quantity, column
from workflows.reporting.sampler_labels import Row, energies, series, title

COLUMNS = 3
PANEL_INCHES, FRAME_INCHES = 2.5, 0.8

TIME = Quantity("t, from all masked (1) to text (0)", "", column("t"))
ESS = Quantity("effective sample size", "candidates", column("ess"))
DISTINCT = Quantity("distinct candidates", "candidates", column("distinct_candidates"))


def ess_figure(trajectory: Sequence[Row]) -> Figure:
    """Plot the effective sample size by t: k means uniform weights, 1 that one candidate has all the weight."""
    return _panels(
        "Effective sample size along the trajectory (k: uniform weights; 1: one candidate has all the weight)",
        ESS,
        trajectory,
    )


def distinct_figure(trajectory: Sequence[Row]) -> Figure:
    """Plot the number of distinct candidates of k by t: if they hardly differ, resampling has no effect."""
    return _panels("Distinct candidates along the trajectory (of k)", DISTINCT, trajectory)


def _panels(name: str, y: Quantity, rows: Sequence[Row]) -> Figure:
    """Plot one panel per energy and one line per T, for the sampler with the most candidates."""
    shown = energies(rows)
    lines = -(-len(shown) // COLUMNS)
    figure = sheet(name, PANEL_INCHES * lines + 0.6)
    grid = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for i, (axes, energy) in enumerate(zip(grid, shown, strict=False)):
        sampler, group = _most_candidates([row for row in rows if row["energy"] == energy])
        _panel(axes, group, y)
        finish(
            axes,
            TIME.axis if i + COLUMNS >= len(shown) else "",
            y.unit if i % COLUMNS == 0 else "",
            f"{title(energy)} ({sampler})",
        )
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def _most_candidates(rows: Sequence[Row]) -> tuple[str, list[Row]]:
    return max(series(rows).items(), key=lambda item: item[1][0]["candidates"])


def _panel(axes: Axes, rows: Sequence[Row], y: Quantity) -> None:
    many = sorted({row["steps"] for row in rows})
    shades = colormaps["cividis_r"](np.linspace(0.25, 1, len(many)))
    k = rows[0]["candidates"]
    draw_levels(axes, [ReferenceLine("k", k), ReferenceLine("1", 1)])
    axes.set_xlim(1.04, -0.04)
    axes.set_ylim(0.5, max(k, 2) * 1.06)
    ends = []
    for steps, shade in zip(many, shades, strict=True):
        along = sorted((row for row in rows if row["steps"] == steps), key=lambda row: -row["t"])
        drawn = line(axes, along, TIME, y, shade)
        ends += [End(f"T = {steps}", row["t"], y.value(row), shade) for row in drawn[-1:] if math.isfinite(row["t"])]
    label_ends(axes, ends, PANEL_INCHES - FRAME_INCHES)
