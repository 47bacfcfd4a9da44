"""Curves of all samplers: an overview with one line per energy, and below it one panel per energy."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from workflows.reporting.figures.style import (
    ERRORS,
    INK,
    PALE,
    End,
    ReferenceLine,
    candidate_colours,
    draw_levels,
    energy_colours,
    finish,
    label_ends,
    line,
    mark_beyond,
    scale,
    sheet,
)
from workflows.reporting.quantities import Quantity, measured
from workflows.reporting.sampler_labels import Row, energies, every_step, last_step_only, series, title
from workflows.row_names import AUTOREGRESSIVE, DATA, PLAIN, UNIFORM

COLUMNS = 3
OVERVIEW_INCHES, PANEL_INCHES = 4.2, 2.5
FRAME_INCHES = 0.8  # part of a panel's height taken by title and labels
Pick = Callable[[Sequence[Row], Quantity, Quantity], list[Row]]


def curves(
    name: str, rows: Sequence[Row], x: Quantity, y: Quantity, levels: Sequence[ReferenceLine], best: Pick, note: str
) -> Figure:
    """Plot y against x for every sampler of every energy, with plain diffusion in each panel.

    `best` selects the rows of each energy for the overview; `note` describes that selection.
    """
    shown = energies(rows)
    lines = -(-len(shown) // COLUMNS)
    heights = [OVERVIEW_INCHES, *([PANEL_INCHES * lines] if shown else [])]
    figure = sheet(name, sum(heights) + 0.4)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    overview = parts[0, 0].subplots()
    _overview(overview, rows, x, y, levels, best, note)
    if not shown:
        return figure
    grid = parts[1, 0].subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    shades = candidate_colours([row["candidates"] for row in rows if row["energy"] in shown])
    colours = energy_colours(shown)
    for i, (axes, energy) in enumerate(zip(grid, shown, strict=False)):
        _panel(axes, rows, energy, x, y, levels, shades, overview.get_ylim())
        finish(axes, x.name if i + COLUMNS >= len(shown) else "", y.unit if i % COLUMNS == 0 else "")
        axes.set_title(title(energy), loc="left", color=colours[energy][0], fontweight="bold", fontsize=10)
        axes.tick_params(labelbottom=True)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def lowest(rows: Sequence[Row], x: Quantity, y: Quantity) -> list[Row]:
    """Return the row with the lowest y per T, ordered by T."""
    return _first_of_each_t(sorted(measured(rows, x, y), key=lambda row: (row["steps"], y.value(row))))


def highest(rows: Sequence[Row], x: Quantity, y: Quantity) -> list[Row]:
    """Return the row with the highest y per T, ordered by T."""
    return _first_of_each_t(sorted(measured(rows, x, y), key=lambda row: (row["steps"], -y.value(row))))


def frontier(rows: Sequence[Row], x: Quantity, y: Quantity) -> list[Row]:
    """Return the Pareto frontier: by increasing cost, each row with lower y than all cheaper ones."""
    kept: list[Row] = []
    for row in sorted(measured(rows, x, y), key=lambda row: (x.value(row), y.value(row))):
        if not kept or y.value(row) < y.value(kept[-1]):
            kept.append(row)
    return kept


def _first_of_each_t(rows: Sequence[Row]) -> list[Row]:
    by_steps: dict[int, Row] = {}
    for row in rows:
        by_steps.setdefault(row["steps"], row)
    return list(by_steps.values())


def _overview(
    axes: Axes, rows: Sequence[Row], x: Quantity, y: Quantity, levels: Sequence[ReferenceLine], best: Pick, note: str
) -> None:
    colours = energy_colours(energies(rows))
    chosen = {
        name: best([row for row in rows if row["energy"] == name and not row["published"]], x, y)
        for name in (PLAIN, *energies(rows), AUTOREGRESSIVE, DATA)
    }
    draw_levels(axes, levels)
    ends = [End(level.name, None, level.value, PALE) for level in levels]
    for name, group in chosen.items():
        colour, marker = colours[name]
        drawn = line(axes, group, x, y, colour, marker, "--" if name == UNIFORM else "-")
        ends += [End(title(name), x.value(row), y.value(row), colour) for row in drawn[-1:]]
    scale(axes, x, rows)
    _scale_y(axes, y, rows if y.linear_within else [row for group in chosen.values() for row in group], levels)
    for name, group in chosen.items():
        mark_beyond(axes, group, x, y, colours[name][0])
    finish(axes, x.axis, y.axis, note)
    label_ends(axes, ends, OVERVIEW_INCHES - FRAME_INCHES)


def _panel(
    axes: Axes, rows, energy: str, x: Quantity, y: Quantity, levels, shades: dict[int, Any], frame: tuple[float, float]
) -> None:
    """Draw all samplers of one energy, with the y limits of the overview."""
    draw_levels(axes, levels)
    _set_y_scale(axes, y)
    axes.set_ylim(*frame)
    ends = []
    for name, group in series([row for row in rows if row["energy"] == PLAIN]).items():
        drawn = line(axes, group, x, y, INK, "s", _dash(group[-1]))
        mark_beyond(axes, group, x, y, INK)
        ends += [End(name.replace("k = 1", "plain"), x.value(row), y.value(row), INK) for row in drawn[-1:]]
    scale(axes, x, rows)
    for name, group in series([row for row in rows if row["energy"] == energy]).items():
        colour = shades[group[-1]["candidates"]]
        drawn = line(axes, group, x, y, colour, "o", _dash(group[-1]))
        mark_beyond(axes, group, x, y, colour)
        ends += [End(name, x.value(row), y.value(row), colour) for row in drawn[-1:]]
    label_ends(axes, ends, PANEL_INCHES - FRAME_INCHES)


def _dash(row: Row) -> str:
    if row["published"]:
        return "-."
    if last_step_only(row):
        return "--"
    return "-" if every_step(row) else ":"


def _scale_y(axes: Axes, y: Quantity, shown: Sequence[Row], levels: Sequence[ReferenceLine]) -> None:
    """Set the y limits to the contents of the overview with a margin; outliers of a panel may lie outside."""
    _set_y_scale(axes, y)
    values = [level.value for level in levels]
    for row in measured(shown, y):
        bar = ERRORS * y.error_of(row) if math.isfinite(y.error_of(row)) else 0.0
        values += [y.value(row) - bar, y.value(row) + bar]
    values = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    if y.linear_within is not None:  # a margin of factor 2 beyond the extreme values
        axes.set_ylim(2 * min(*values, -y.linear_within), 2 * max(*values, y.linear_within))
        return
    low, high = min(values), max(values)
    room = high - low or 1.0
    axes.set_ylim(low - 0.06 * room, high + 0.12 * room)


def _set_y_scale(axes: Axes, y: Quantity) -> None:
    if y.linear_within is not None:
        axes.set_yscale("symlog", linthresh=y.linear_within)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
