"""Quality against cost in one figure: one column per family of samplers, each including plain diffusion.

Bounds, and texts at the entropy of the data, against network calls and against seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from workflows.reporting.figures.bounds import levels
from workflows.reporting.figures.curves import frontier
from workflows.reporting.figures.style import (
    ACCENTS,
    CONTROL_COLOURS,
    ERRORS,
    FAINT,
    INK,
    MARKERS,
    PALE,
    SMALL,
    ReferenceLine,
    draw_levels,
    finish,
    line,
    mark_beyond,
    scale,
    sheet,
)
from workflows.reporting.quantities import BOUND, CALLS, PERPLEXITY, TEXT_SECONDS, Quantity, measured
from workflows.reporting.sampler_labels import Row, every_step, planned, series, title
from workflows.row_names import AUTOREGRESSIVE, PLAIN, UNIFORM

PANEL_INCHES, LINE_INCHES = 2.35, 0.17
WHOLE, STEP, NORMALISED = "plain and whole-sequence", "step energies", "conditional energies"
OTHER = "other unmasking"
OTHER_SUFFIX = " (another distribution)"  # redundant within the column OTHER, whose title states it


@dataclass(frozen=True)
class Curve:
    """One sampler at every T, with its color and marker."""

    name: str
    rows: Sequence[Row]
    colour: Any
    marker: str


def quality_cost_figure(
    summary: Row,
    bounds: Sequence[Row],
    matched: Sequence[Row],
    cost: Sequence[Row],
    data: Row | None,
    effort: Sequence[Row] = (),
) -> Figure:
    """Plot the bound, and below it the generative perplexity at the entropy of the data, against calls and seconds.

    The autoregressive model is included, at one call per token. `data`: judge scores of held-out texts. `effort`: plans
    that name the energies of a planned sampler.
    """
    length = summary["length"]
    ar = _autoregressive_bound(summary, cost)
    reference_lines = levels({**summary, "autoregressive_nll": None} if ar else summary)
    halves = [(BOUND, [*bounds, *ar], reference_lines)]
    if measured(matched, PERPLEXITY):
        held_out = (
            [] if data is None else [ReferenceLine("data", PERPLEXITY.value(data), PERPLEXITY.error_of(data), "-.")]
        )
        halves.append((PERPLEXITY, list(matched), held_out))
    halves = [
        (y, [_with_calls(row, length) for row in _usual(rows)], reference_lines) for y, rows, reference_lines in halves
    ]
    energies_by_family = families([row for _, rows, _ in halves for row in rows], bounds, effort)
    colours: dict[str, dict[str, Any]] = {name: {} for name in energies_by_family}  # of each sampler, in all panels
    drawn = [
        {name: curves_of(rows, members, y, colours[name]) for name, members in energies_by_family.items()}
        for y, rows, _ in halves
    ]
    most = max(len(curves) for by_family in drawn for curves in by_family.values())
    figure = sheet(
        "Quality against cost (lower and further left is better)",
        2 * len(halves) * PANEL_INCHES + LINE_INCHES * (most + 2) + 0.8,
    )
    grid = figure.subplots(2 * len(halves), len(energies_by_family), sharex="row", sharey="row", squeeze=False)
    lines = [(half, x) for half in range(len(halves)) for x in (CALLS, TEXT_SECONDS)]
    for i, (half, x) in enumerate(lines):
        (y, rows, reference_lines), by_family = halves[half], drawn[half]
        for j, name in enumerate(energies_by_family):
            _panel(grid[i, j], rows, by_family[name], x, y, reference_lines)
            finish(grid[i, j], x.name, y.name if j == 0 else "", name if i == 0 else "")
        _frame([*grid[i]], rows, y, reference_lines)
        for axes, curves in zip(grid[i], by_family.values(), strict=True):
            for curve in (*_references(rows, x, y), *curves):
                mark_beyond(axes, curve.rows, x, y, curve.colour)
    for j, name in enumerate(energies_by_family):
        members = [curve for by_family in drawn for curve in by_family[name]]
        _legend(grid[-1, j], [*(curve for y, rows, _ in halves for curve in _references(rows, CALLS, y)), *members])
    return figure


def families(rows: Sequence[Row], bounds: Sequence[Row], effort: Sequence[Row] = ()) -> dict[str, list[str]]:
    """Group the energies (with their distributions) by family, in the order of the table; empty families are omitted.

    A planned sampler belongs to the family of the energies in its plan, or to the wider one if they differ.
    """
    whole_sequence = {row["energy"] for row in bounds if row.get("whole_sequence")}
    exact = {row["energy"] for row in bounds if not row["candidates"] and not row.get("whole_sequence")}
    for energy in {row["energy"] for row in effort}:
        steps = {step for row in effort if row["energy"] == energy for step in row["plan"]} - {PLAIN}
        if steps and {step.partition(",")[0] for step in steps} <= exact:
            exact.add(energy)
    by_family: dict[str, list[str]] = {name: [] for name in (WHOLE, STEP, NORMALISED, OTHER)}
    for energy in dict.fromkeys(row["energy"] for row in rows):
        base, _, suffix = energy.partition(",")
        if energy in (PLAIN, UNIFORM, AUTOREGRESSIVE):
            continue
        if OTHER_SUFFIX in suffix:
            by_family[OTHER].append(energy)
        elif base == PLAIN or base in whole_sequence:
            by_family[WHOLE].append(energy)
        else:
            by_family[NORMALISED if {base, energy} & exact else STEP].append(energy)
    return {name: members for name, members in by_family.items() if members} or {title(PLAIN): []}


def curves_of(rows: Sequence[Row], names: Sequence[str], y: Quantity, colours: dict[str, Any]) -> list[Curve]:
    """Return the curves of these energies: one color per sampler, one marker per energy.

    Samplers that are not in `colours` yet are added to it.
    """
    drawn: list[Curve] = []
    for i, energy in enumerate(names):
        groups = series(measured([row for row in rows if row["energy"] == energy], y))
        for words, group in groups.items():
            name = title(energy).replace(OTHER_SUFFIX, "") + (
                f", {words}" if group[0]["candidates"] != 1 or planned(group[0]) else ""
            )
            colour = colours.setdefault(name, ACCENTS[len(colours) % len(ACCENTS)])
            drawn.append(Curve(name, group, colour, MARKERS[i % len(MARKERS)]))
    return drawn


def _usual(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row["published"] and row["energy_temperature"] == 1 and every_step(row)]


def _autoregressive_bound(summary: Row, cost: Sequence[Row]) -> list[Row]:
    """Return the autoregressive model as a row of the bounds: its likelihood is exact, its seconds are measured."""
    likelihood = summary.get("autoregressive_nll")
    timed = [row for row in cost if row["energy"] == AUTOREGRESSIVE]
    if likelihood is None or not timed:
        return []
    return [
        {
            **timed[0],
            "bound_nats_per_token": likelihood["nats_per_token"],
            "standard_error": likelihood["standard_error"],
        }
    ]


def _with_calls(row: Row, length: int) -> Row:
    """Return the row with its calls: autoregressive sampling takes one call per token."""
    return {**row, "denoiser_calls": float(length)} if row["energy"] == AUTOREGRESSIVE else row


def _references(rows: Sequence[Row], x: Quantity, y: Quantity) -> list[Curve]:
    """Return the curves shown in every panel: plain diffusion and the autoregressive model."""
    kinds = ((PLAIN, INK, "s"), (AUTOREGRESSIVE, CONTROL_COLOURS[AUTOREGRESSIVE], "*"))
    references = [Curve(title(name), [row for row in rows if row["energy"] == name], *style) for name, *style in kinds]
    return [curve for curve in references if measured(curve.rows, x, y)]


def _panel(
    axes: Axes,
    rows: Sequence[Row],
    drawn: Sequence[Curve],
    x: Quantity,
    y: Quantity,
    reference_lines: Sequence[ReferenceLine],
) -> None:
    draw_levels(axes, reference_lines)
    best = frontier([row for row in rows if row["energy"] not in (AUTOREGRESSIVE, UNIFORM)], x, y)
    axes.plot(
        [x.value(row) for row in best], [y.value(row) for row in best], color=FAINT, linewidth=7, alpha=0.6,
        solid_capstyle="round", solid_joinstyle="round", zorder=0.7,
    )  # fmt: skip
    for curve in (*_references(rows, x, y), *drawn):
        line(axes, curve.rows, x, y, curve.colour, curve.marker)
    scale(axes, x, rows)
    if x.base == 2:
        axes.xaxis.set_major_locator(LogLocator(4))  # as many ticks as fit the narrow panel
    for level in reference_lines:
        axes.annotate(
            level.name, (0, level.value), xycoords=("axes fraction", "data"), xytext=(3, 2), ha="left",
            textcoords="offset points", fontsize=SMALL - 1.5, color=PALE,
        )  # fmt: skip


def _frame(
    row_of_axes: Sequence[Axes], rows: Sequence[Row], y: Quantity, reference_lines: Sequence[ReferenceLine]
) -> None:
    """Set the y axis to include, with a margin, every value no worse than the worst of plain diffusion."""
    if y.base is not None:
        for axes in row_of_axes:
            axes.set_yscale("log", base=y.base)
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    shown = measured(rows, y)
    plain = [y.value(row) for row in shown if row["energy"] == PLAIN] or [y.value(row) for row in shown]
    if not plain:
        return
    values = [
        v for v in [*(y.value(row) for row in shown), *(level.value for level in reference_lines)] if v <= max(plain)
    ]
    errors = [ERRORS * y.error_of(row) for row in shown if y.value(row) <= max(plain)]
    low, high = min(values), max(values) + max(filter(math.isfinite, errors), default=0.0)
    if y.base is not None:
        row_of_axes[0].set_ylim(low / 1.06, high * 1.06)
    else:
        row_of_axes[0].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _legend(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw the legend below the column, so that it covers no curve."""
    samples = [
        axes.plot([], [], color=curve.colour, marker=curve.marker, markersize=4, label=curve.name)[0]
        for curve in {curve.name: curve for curve in curves}.values()
    ]
    axes.legend(
        handles=samples, loc="upper left", bbox_to_anchor=(-0.04, -0.34), fontsize=SMALL - 1.5, frameon=False,
        handlelength=1.6, borderaxespad=0, labelcolor=INK,
    )  # fmt: skip
