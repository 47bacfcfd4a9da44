"""Quality against cost in one view: bounds, and texts at the entropy of the data, against network calls and seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from workflows.reporting.figures.bounds import levels
from workflows.reporting.figures.curves import frontier
from workflows.reporting.figures.style import (
    ERRORS,
    FAINT,
    PALE,
    End,
    Level,
    draw_levels,
    energy_colours,
    finish,
    label_ends,
    line,
    mark_beyond,
    scale,
    sheet,
)
from workflows.reporting.quantities import BOUND, CALLS, PERPLEXITY, TEXT_SECONDS, Quantity, measured
from workflows.reporting.samplers import AUTOREGRESSIVE, PLAIN, UNIFORM, Row, energies, every_step, series, title

PANEL_INCHES, FRAME_INCHES = 4.6, 0.9
MOST = 22  # lines that can be told apart; of more samplers than that the best of each energy are drawn
PALEST = 0.55  # of white in the colour of the fewest candidates


@dataclass(frozen=True)
class Curve:
    """One sampler at every T, and how it is drawn."""

    name: str
    rows: Sequence[Row]
    colour: Any
    marker: str


def quality_cost_figure(
    summary: Row, bounds: Sequence[Row], matched: Sequence[Row], cost: Sequence[Row], data: Row | None
) -> Figure:
    """The bound, and below it the generative perplexity at the entropy of the data, each against calls and seconds.

    The autoregressive model stands among them, a call for each token. `data` is what the judge makes of held-out texts.
    """
    length = summary["length"]
    ar = _autoregressive_bound(summary, cost)
    beside = levels({**summary, "autoregressive_nll": None} if ar else summary)
    halves = [(BOUND, [*bounds, *ar], beside)]
    if measured(matched, PERPLEXITY):
        held_out = [] if data is None else [Level("data", PERPLEXITY.value(data), PERPLEXITY.error_of(data), "-.")]
        halves.append((PERPLEXITY, list(matched), held_out))
    figure = sheet("Quality against cost (lower and further left is better)", PANEL_INCHES * len(halves) + 0.4)
    grid = figure.subplots(len(halves), 2, sharey="row", squeeze=False)
    colours = energy_colours(energies([*bounds, *matched]))
    for pair, (y, rows, beside) in zip(grid, halves, strict=True):
        drawn = curves_of([_with_calls(row, length) for row in rows], y, colours)
        for axes, x in zip(pair, (CALLS, TEXT_SECONDS), strict=True):
            _panel(axes, drawn, x, y, beside, "" if x is TEXT_SECONDS else y.axis)
        label_ends(pair[1], _ends(drawn, TEXT_SECONDS, y, beside), PANEL_INCHES - FRAME_INCHES)
    return figure


def _autoregressive_bound(summary: Row, cost: Sequence[Row]) -> list[Row]:
    """The autoregressive model as a row beside the bounds: its likelihood is exact, its seconds were measured."""
    found = summary.get("autoregressive_nll")
    timed = [row for row in cost if row["energy"] == AUTOREGRESSIVE]
    if found is None or not timed:
        return []
    return [{**timed[0], "bound_nats_per_token": found["nats_per_token"], "standard_error": found["standard_error"]}]


def _with_calls(row: Row, length: int) -> Row:
    """The row with the calls that it took: token by token is a call a token."""
    return {**row, "denoiser_calls": float(length)} if row["energy"] == AUTOREGRESSIVE else row


def curves_of(rows: Sequence[Row], y: Quantity, colours: dict[str, tuple[Any, str]]) -> list[Curve]:
    """Of every energy its samplers that resample in all steps, the more candidates the darker.

    Where there are more than `MOST`, those of each energy that reach the least y, as many of each as there is room for.
    """
    usual = [row for row in rows if not row["legacy"] and row["temperature"] == 1 and every_step(row)]
    found = {
        energy: list(series(measured([row for row in usual if row["energy"] == energy], y)).items())
        for energy in (PLAIN, *energies(usual), AUTOREGRESSIVE)
        if energy != UNIFORM
    }
    many = max(map(len, found.values()))
    while many > 1 and sum(min(many, len(own)) for own in found.values()) > MOST:
        many -= 1
    drawn = []
    for energy, own in found.items():
        best = sorted(own, key=lambda sampler: min(map(y.value, sampler[1])))[:many]
        kept = [sampler for sampler in own if sampler in best]
        for i, (words, group) in enumerate(kept, 1):
            colour, marker = colours[energy]
            name = title(energy) + (f", {words}" if group[0]["candidates"] != 1 else "")
            drawn.append(Curve(name, group, _mixed(colour, PALEST * (1 - i / len(kept))), marker))
    return drawn


def _mixed(colour: Any, white: float) -> tuple[float, ...]:
    return tuple((1 - white) * part + white for part in colors.to_rgb(colour))


def _panel(axes: Axes, drawn: Sequence[Curve], x: Quantity, y: Quantity, beside: Sequence[Level], words: str) -> None:
    draw_levels(axes, beside)
    best = frontier([row for curve in drawn for row in curve.rows if row["energy"] != AUTOREGRESSIVE], x, y)
    axes.plot(
        [x.value(row) for row in best], [y.value(row) for row in best], color=FAINT, linewidth=7, alpha=0.6,
        solid_capstyle="round", solid_joinstyle="round", zorder=0.7,
    )  # fmt: skip
    for curve in drawn:
        line(axes, curve.rows, x, y, curve.colour, "*" if curve.rows[0]["energy"] == AUTOREGRESSIVE else curve.marker)
    scale(axes, x, [row for curve in drawn for row in curve.rows])
    _frame(axes, drawn, y, beside)
    for curve in drawn:
        mark_beyond(axes, curve.rows, x, y, curve.colour)
    finish(axes, x.axis, words, f"against {x.name}")
    if best:
        axes.annotate(
            "frontier of all samplers", (x.value(best[0]), y.value(best[0])), xytext=(6, 4),
            textcoords="offset points", fontsize=7, color=PALE, style="italic",
        )  # fmt: skip


def _frame(axes: Axes, drawn: Sequence[Curve], y: Quantity, beside: Sequence[Level]) -> None:
    """Afterwards the y axis holds everything that is not worse than plain diffusion at its worst, and a little more."""
    if y.base is not None:
        axes.set_yscale("log", base=y.base)
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 5, 7), numticks=12))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    rows = [row for curve in drawn for row in curve.rows]
    plain = [y.value(row) for row in rows if row["energy"] == PLAIN] or [y.value(row) for row in rows]
    values = [v for v in [*(y.value(row) for row in rows), *(level.value for level in beside)] if v <= max(plain)]
    errors = [ERRORS * y.error_of(row) for row in rows if math.isfinite(y.error_of(row))]
    low, high = min(values), max(values) + max(errors, default=0.0)
    if y.base is not None:
        axes.set_ylim(low / 1.06, high * 1.06)
    else:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _ends(drawn: Sequence[Curve], x: Quantity, y: Quantity, beside: Sequence[Level]) -> list[End]:
    """Names at the right end of each curve that has one, and of each level."""
    ends = [End(level.name, None, level.value, PALE) for level in beside]
    for curve in drawn:
        ends += [End(curve.name, x.value(row), y.value(row), curve.colour) for row in measured(curve.rows, x, y)[-1:]]
    return ends
