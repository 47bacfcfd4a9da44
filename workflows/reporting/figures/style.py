"""How every figure looks: colours that the colour-blind can tell apart, quiet axes, labels at the ends of lines."""

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
from workflows.reporting.samplers import AUTOREGRESSIVE, DATA, PLAIN, UNIFORM, Row

INK, FAINT, PALE = "#22262b", "#b9c0c8", "#6b737c"
# After Paul Tol's muted scheme; neighbours differ in lightness too, and all are legible on white.
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

WIDTH = 10.0  # inches: 1500 pixels, still legible where a page shows 1000 of them
ERRORS = 2  # standard errors in an error bar
TITLE, PANEL, TEXT, SMALL = 12.5, 10.0, 9.0, 8.0  # points


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, and its standard error (nan: none)."""

    name: str
    value: float
    standard_error: float = math.nan
    dash: str = ":"


@dataclass(frozen=True)
class End:
    """Where a line ends, and what it is called there."""

    name: str
    x: float | None
    """None: the panel's right edge."""
    y: float
    colour: Any


def energy_colours(names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """The colour and the marker of each energy, the same in every figure of an experiment."""
    own = [name for name in names if name not in CONTROL_COLOURS]
    found: dict[str, tuple[Any, str]] = {
        name: (ACCENTS[i % len(ACCENTS)], MARKERS[(i + i // len(ACCENTS)) % len(MARKERS)]) for i, name in enumerate(own)
    }
    return found | {name: (colour, "s") for name, colour in CONTROL_COLOURS.items()}


def candidate_colours(many: Sequence[int]) -> dict[int, Any]:
    """Darker is more candidates; exact (0) is darkest."""
    ordered = sorted(set(many), key=lambda k: k or math.inf)
    shades = colormaps["viridis_r"](np.linspace(0.3, 0.95, len(ordered)))
    return dict(zip(ordered, shades, strict=True))


def sheet(title: str, height: float) -> Figure:
    """An empty figure of the common width, its title at the left."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03)  # type: ignore[union-attr]
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=TITLE, fontweight="bold")
    return figure


def finish(axes: Axes, x: str, y: str, title: str = "", colour: Any = INK) -> None:
    """Afterwards the panel has its words, and no more lines than it needs."""
    axes.set_title(title, loc="left", color=colour, fontsize=PANEL, fontweight="bold")
    axes.set_xlabel(x, color=INK, fontsize=TEXT)
    axes.set_ylabel(y, color=INK, fontsize=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=SMALL, length=3)


def scale(axes: Axes, quantity: Quantity, rows: Sequence[Row]) -> None:
    """Afterwards the x axis is logarithmic where the quantity is, with plain numbers as ticks."""
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
    """Draws the rows that can be drawn, with bars of 2 standard errors, and returns them; legacy rows are hollow."""
    rows = measured(rows, x, y)
    if not rows:
        return rows
    axes.errorbar(
        [x.value(row) for row in rows],
        [y.value(row) for row in rows],
        xerr=_bars(rows, x),
        yerr=_bars(rows, y),
        color=colour, ecolor=(colour, 0.55), linestyle=dash, marker=marker, markersize=4, linewidth=1.5, elinewidth=0.9,
        markerfacecolor="white" if rows[0]["legacy"] else colour,
    )  # fmt: skip
    return rows


def _bars(rows: Sequence[Row], quantity: Quantity) -> list[float] | None:
    """Half the length of each error bar; none where the error is not known."""
    if quantity.error is None:
        return None
    errors = [quantity.error_of(row) for row in rows]
    return [ERRORS * error if math.isfinite(error) else 0.0 for error in errors]


def draw_levels(axes: Axes, levels: Sequence[Level]) -> None:
    """Afterwards each level is a line across the panel, in a band of 2 standard errors."""
    for level in levels:
        axes.axhline(level.value, color=PALE, linestyle=level.dash, linewidth=1.2, zorder=0.6)
        if math.isfinite(level.standard_error):
            half = ERRORS * level.standard_error
            axes.axhspan(level.value - half, level.value + half, color=FAINT, alpha=0.22, linewidth=0, zorder=0.5)


def label_ends(axes: Axes, ends: Sequence[End], inches: float) -> None:
    """Afterwards every line's name stands right of the panel, no two on one another, tied to the line's end.

    The y axis's scale and limits must be final; `inches` is about the panel's height.
    """
    named = [end for end in ends if math.isfinite(end.y)]
    heights = [_height(axes, end.y) for end in named]
    places = spread(heights, 1.3 * SMALL / 72 / inches)
    for end, height, place in zip(named, heights, places, strict=True):
        x, across = (1.0, "axes fraction") if end.x is None else (end.x, "data")
        axes.annotate(
            f" {end.name}", (x, height), xycoords=(across, "axes fraction"),
            xytext=(1.06, place), textcoords="axes fraction", va="center", ha="left", fontsize=SMALL, color=INK,
            annotation_clip=False,
            # Not clipped at the text's frame: that would take as long as all the rest.
            arrowprops={
                "arrowstyle": "-", "color": end.colour, "linewidth": 1.2, "linestyle": (0, (1, 1.2)),
                "relpos": (0, 0.5), "patchA": None, "shrinkA": 0, "shrinkB": 0,
            },
        )  # fmt: skip


def _height(axes: Axes, y: float) -> float:
    """Where on the panel y lies: 0 is its foot, 1 its head, and what is beyond stays there."""
    low, high, place = axes.yaxis.get_transform().transform(np.array([*axes.get_ylim(), y], dtype=float))
    return float(np.clip((place - low) / (high - low), 0, 1))


def spread(values: Sequence[float], apart: float) -> list[float]:
    """The places nearest to `values` (least squares), in their order, at least `apart` from one another.

    They stay between 0 and 1 as far as all of them fit there.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    pools: list[list[float]] = []  # neighbours that would collide, as (sum, count) of value - rank * apart
    for rank, i in enumerate(order):
        pools.append([values[i] - rank * apart, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    means = [total / count for total, count in pools for _ in range(int(count))]
    room = max(0.0, 1 - (len(values) - 1) * apart)
    places = [0.0] * len(values)
    for rank, (i, mean) in enumerate(zip(order, means, strict=True)):
        places[i] = min(max(mean, 0.0), room) + rank * apart
    return places


def mark_beyond(axes: Axes, rows: Sequence[Row], x: Quantity, y: Quantity, colour: Any) -> None:
    """A triangle at the frame's edge for every value that lies outside it: no number disappears unsaid."""
    low, high = axes.get_ylim()
    for row in measured(rows, x, y):
        value = y.value(row)
        if not low <= value <= high:
            edge, marker = (high, "^") if value > high else (low, "v")
            axes.plot(x.value(row), edge, marker=marker, markersize=6, color=colour, clip_on=False, linestyle="none")
