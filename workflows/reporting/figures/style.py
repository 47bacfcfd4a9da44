"""Common style of all figures: colors safe for color blindness, light axes, labels at the ends of lines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from workflows.reporting.quantities import Quantity, measured
from workflows.reporting.sampler_labels import Row
from workflows.row_names import AUTOREGRESSIVE, DATA, PLAIN, UNIFORM

INK, FAINT, PALE = "#22262b", "#b9c0c8", "#6b737c"
# After Paul Tol's muted scheme; adjacent colors differ in lightness too, and all are legible on white.
ACCENTS = (
    "#332288",
    "#cc6677",
    "#117733",
    "#0099cc",
    "#882255",
    "#999933",
    "#44aa99",
    "#cc8400",
    "#aa4499",
    "#5577dd",
)
MARKERS = "osD^vPXp*h"
CONTROL_COLOURS = {PLAIN: INK, UNIFORM: PALE, DATA: "#000000", AUTOREGRESSIVE: "#8b5a2b"}

WIDTH = 10.0  # inches: 1500 pixels, still legible when scaled to 1000
ERRORS = 2  # standard errors in an error bar
TITLE, PANEL, TEXT, SMALL = 12.5, 10.0, 9.0, 8.0  # points


@dataclass(frozen=True)
class ReferenceLine:
    """Horizontal reference line and its standard error (nan: none)."""

    name: str
    value: float
    standard_error: float = math.nan
    dash: str = ":"


@dataclass(frozen=True)
class End:
    """End point of a line and its label."""

    name: str
    x: float | None
    """None: right edge of the panel."""
    y: float
    colour: Any


def energy_colours(names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Return the color and the marker of each energy, equal in all figures of an experiment."""
    energies = [name for name in names if name not in CONTROL_COLOURS]
    styles: dict[str, tuple[Any, str]] = {
        name: (ACCENTS[i % len(ACCENTS)], MARKERS[(i + i // len(ACCENTS)) % len(MARKERS)])
        for i, name in enumerate(energies)
    }
    return styles | {name: (colour, "s") for name, colour in CONTROL_COLOURS.items()}


def candidate_colours(many: Sequence[int]) -> dict[int, Any]:
    """Return a color per number of candidates: darker for more, darkest for exact (0)."""
    ordered = sorted(set(many), key=lambda k: k or math.inf)
    shades = colormaps["viridis_r"](np.linspace(0.3, 0.95, len(ordered)))
    return dict(zip(ordered, shades, strict=True))


def sheet(title: str, height: float) -> Figure:
    """Return an empty figure of the common width with a left-aligned title."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03)  # type: ignore[union-attr]
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=TITLE, fontweight="bold")
    return figure


def finish(axes: Axes, x: str, y: str, title: str = "", colour: Any = INK) -> None:
    """Add title and axis labels to the panel and remove superfluous spines."""
    axes.set_title(title, loc="left", color=colour, fontsize=PANEL, fontweight="bold")
    axes.set_xlabel(x, color=INK, fontsize=TEXT)
    axes.set_ylabel(y, color=INK, fontsize=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=SMALL, length=3)


def scale(axes: Axes, quantity: Quantity, rows: Sequence[Row]) -> None:
    """Make the x axis logarithmic if the quantity is, with plain numbers as tick labels."""
    if quantity.base is None:
        return
    axes.set_xscale("log", base=quantity.base)
    values = [quantity.value(row) for row in measured(rows, quantity)]
    narrow = quantity.base == 10 and len(values) > 0 and max(values) < 100 * min(values)
    axes.xaxis.set_major_locator(LogLocator(quantity.base, subs=(1, 2, 5) if narrow else (1,), numticks=9))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def line(
    axes: Axes, rows: Sequence[Row], x: Quantity, y: Quantity, colour: Any, marker: str = "o", dash: str = "-"
) -> list[Row]:
    """Draw the measured rows with error bars of 2 standard errors and return them.

    Rows of the published sampler have hollow markers.
    """
    rows = measured(rows, x, y)
    if not rows:
        return rows
    axes.errorbar(
        [x.value(row) for row in rows],
        [y.value(row) for row in rows],
        xerr=_bars(rows, x),
        yerr=_bars(rows, y),
        color=colour, ecolor=(colour, 0.55), linestyle=dash, marker=marker, markersize=4, linewidth=1.5, elinewidth=0.9,
        markerfacecolor="white" if rows[0]["published"] else colour,
    )  # fmt: skip
    return rows


def _bars(rows: Sequence[Row], quantity: Quantity) -> list[float] | None:
    """Return half the length of each error bar (0 if the error is not finite), or None if the quantity has no error."""
    if quantity.error is None:
        return None
    errors = [quantity.error_of(row) for row in rows]
    return [ERRORS * error if math.isfinite(error) else 0.0 for error in errors]


def draw_levels(axes: Axes, levels: Sequence[ReferenceLine]) -> None:
    """Draw each level as a line across the panel, with a band of 2 standard errors."""
    for level in levels:
        axes.axhline(level.value, color=PALE, linestyle=level.dash, linewidth=1.2, zorder=0.6)
        if math.isfinite(level.standard_error):
            half = ERRORS * level.standard_error
            axes.axhspan(level.value - half, level.value + half, color=FAINT, alpha=0.22, linewidth=0, zorder=0.5)


def label_ends(axes: Axes, ends: Sequence[End], inches: float) -> None:
    """Label the lines to the right of the panel without overlaps, each label connected to the end of its line.

    The scale and limits of the y axis must be final. `inches`: approximate height of the panel.
    """
    named = [end for end in ends if math.isfinite(end.y)]
    heights = [_height(axes, end.y) for end in named]
    positions = spread(heights, 1.3 * SMALL / 72 / inches)
    for end, height, position in zip(named, heights, positions, strict=True):
        x, across = (1.0, "axes fraction") if end.x is None else (end.x, "data")
        axes.annotate(
            f" {end.name}", (x, height), xycoords=(across, "axes fraction"),
            xytext=(1.06, position), textcoords="axes fraction", va="center", ha="left", fontsize=SMALL, color=INK,
            annotation_clip=False,
            # Clipping at the text's bounding box would take as long as everything else together.
            arrowprops={
                "arrowstyle": "-", "color": end.colour, "linewidth": 1.2, "linestyle": (0, (1, 1.2)),
                "relpos": (0, 0.5), "patchA": None, "shrinkA": 0, "shrinkB": 0,
            },
        )  # fmt: skip


def _height(axes: Axes, y: float) -> float:
    """Return the height of y in the panel, from 0 (bottom) to 1 (top), clipped to that range."""
    low, high, position = axes.yaxis.get_transform().transform(np.array([*axes.get_ylim(), y], dtype=float))
    return float(np.clip((position - low) / (high - low), 0, 1))


def spread(values: Sequence[float], apart: float) -> list[float]:
    """Return the positions nearest to `values` (least squares), in the same order, at least `apart` from one another.

    They lie between 0 and 1 as far as all of them fit.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    pools: list[list[float]] = []  # groups that would overlap, as (sum, count) of value - rank * apart
    for rank, i in enumerate(order):
        pools.append([values[i] - rank * apart, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    means = [total / count for total, count in pools for _ in range(int(count))]
    room = max(0.0, 1 - (len(values) - 1) * apart)
    positions = [0.0] * len(values)
    for rank, (i, mean) in enumerate(zip(order, means, strict=True)):
        positions[i] = min(max(mean, 0.0), room) + rank * apart
    return positions


def mark_beyond(axes: Axes, rows: Sequence[Row], x: Quantity, y: Quantity, colour: Any) -> None:
    """Mark every value outside the frame by a triangle at its edge, so that no value disappears silently."""
    low, high = axes.get_ylim()
    for row in measured(rows, x, y):
        value = y.value(row)
        if not low <= value <= high:
            edge, marker = (high, "^") if value > high else (low, "v")
            axes.plot(x.value(row), edge, marker=marker, markersize=6, color=colour, clip_on=False, linestyle="none")
