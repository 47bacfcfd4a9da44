"""Figures of docs/scaling.md: how time, memory and cost grow, by the formulas of the planner.

python -m workflows.benchmarking.scaling [--folder docs]    # seconds; networks have shapes and no weights
"""

import math
import sys
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from edlm.config import config, from_flags
from edlm.planning.devices import GB
from workflows.benchmarking.scaling_curves import (
    CANDIDATES,
    COUNT,
    COUNTS,
    DEVICE,
    GPT2,
    LADDER,
    LENGTH,
    PLAIN,
    ROWS,
    SIZES,
    STAGES,
    STEP,
    STEPS,
    TERABYTE_TOKENS,
    TEXTS,
    WHOLE,
    GrowthCurve,
    generation_curves,
    plan,
    trained,
    training_curves,
)
from workflows.reporting.figures.style import ACCENTS, INK, SMALL, finish, sheet

DOTS_PER_INCH = 110
HEIGHT, TALL = 4.0, 6.8  # inches, of one row of panels and of three
THIN: dict[str, Any] = {"linewidth": 1.4, "markersize": 2.5}
COLOURS = dict(zip(SIZES, ACCENTS, strict=False)) | {None: INK}
LINES = {STAGES[1]: ":", STAGES[2]: "-", STAGES[3]: "--", PLAIN: "-", STEP: "-.", WHOLE: "o-"}
"""Marker and dash of each kind."""
TICKS = 4  # base of the tick labels of an axis up to `FEW`, so that 2 to 64 has some; others have decades
FEW = 1024
PROPERTIES = {
    "tokens_per_second": "tokens per second",
    "mfu": "MFU, collectives not hidden",
    "checkpoint_stop_seconds": "a checkpoint stops training, s",
}
"""Properties of a plan that are drawn against the devices, and their labels."""


@config
class Drawing:
    """Where the figures are drawn."""

    folder: str = str(Path(__file__).parents[2] / "docs")
    """Folder of the PNG files, which are overwritten."""


def figures() -> dict[str, Figure]:
    """Return the figures by name."""
    return {
        "scaling-training": _grid(
            f"Training on 1 TB of text: {COUNT} H100, L = {LENGTH:,}, |V| = {GPT2:,}, bfloat16",
            training_curves(),
            ("hours", "GB per device", "device-hours"),
        ),
        "scaling-generation": _grid(
            f"{TEXTS} texts at once on one H100: L = {LENGTH:,}, |V| = {GPT2:,}, T = {STEPS}, k = {CANDIDATES}",
            generation_curves(),
            ("seconds", "GB per device", "device-hours\nper 1e9 tokens"),
        ),
        "scaling-devices": _by_devices(),
    }


def _grid(title: str, columns: dict[str, list[GrowthCurve]], quantities: tuple[str, str, str]) -> Figure:
    """Return panels: from left to right what grows, from top to bottom what it needs: time, memory and cost."""
    figure = sheet(title, TALL)
    panels = figure.subplots(3, len(columns), sharex="col", sharey="row")
    values = map(attrgetter, ("time", "memory_gb", "device_hours"))
    for row, quantity, value in zip(panels, quantities, values, strict=True):
        for axes, (name, curves) in zip(row, columns.items(), strict=True):
            for curve in curves:
                needs = [value(one) for one in curve.points.values()]
                _line(axes, list(curve.points), needs, curve.kind, curve.size)
            _finish(axes, name, quantity)
            axes.label_outer()
    for axes in panels[1]:
        axes.axhline(DEVICE.memory_bytes / GB, color=INK, linestyle=":", linewidth=1)
    _legend(figure, [curve.kind for curves in columns.values() for curve in curves])
    return figure


def _by_devices() -> Figure:
    figure = sheet(f"H100, {ROWS} rows of {LENGTH:,} tokens per step", HEIGHT)
    panels = figure.subplots(1, len(PROPERTIES))
    for name, size in SIZES.items():
        for stage in (1, 3):
            plans = [plan(size, stage, count) for count in COUNTS]
            for axes, attribute in zip(panels, PROPERTIES, strict=True):
                _line(axes, COUNTS, [getattr(one, attribute) for one in plans], STAGES[stage], name)
    for axes, label in zip(panels, PROPERTIES.values(), strict=True):
        _finish(axes, "devices", label)
    panels[1].set_yscale("linear")
    _legend(figure, [STAGES[1], STAGES[3]])
    return figure


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], kind: str, size: str | None) -> None:
    assert all(math.isfinite(value) and value > 0 for value in y)
    axes.loglog(x, y, LINES[kind], color=COLOURS[size], **THIN)


def _finish(axes: Axes, x: str, y: str) -> None:
    """Label a panel, whose x axis has tick labels between decades if it is short."""
    finish(axes, x, y)
    axes.grid(alpha=0.25)
    if axes.dataLim.xmax <= FEW:
        axes.set_xscale("log", base=TICKS)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _legend(figure: Figure, kinds: Sequence[str]) -> None:
    """Add the colors of sizes and the dashes of kinds below the panels."""
    entries = [(f"{size} in the layers", "-", COLOURS[size]) for size in SIZES]
    entries += [(kind, LINES[kind], INK) for kind in dict.fromkeys(kinds)]
    handles = [figure.axes[0].plot([], [], line, color=colour, label=name, **THIN)[0] for name, line, colour in entries]
    columns = math.ceil(len(handles) / len(SIZES))  # the first is that of the sizes
    figure.legend(
        handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK
    )


def costs() -> Iterator[str]:
    """Yield a line per size: the device-hours of a terabyte of text, and those of the passes alone."""
    for size in LADDER:
        one = plan(size)
        hours = trained(one).device_hours
        yield (
            f"{one.work.trained:.2g} parameters, {TERABYTE_TOKENS:.2g} tokens: {hours:,.0f} device-hours at an MFU of "
            f"{one.mfu:.2f} with the collectives; {hours * one.compute_seconds / one.step_seconds:,.0f} if they were "
            f"hidden, at {one.assumptions.mfu:.2f}"
        )


def main(arguments: Sequence[str]) -> None:
    """Draw the figures beside the page, and print the costs that it names."""
    drawing = from_flags(Drawing, arguments, __doc__ or "")
    for name, figure in figures().items():
        figure.savefig(Path(drawing.folder, f"{name}.png"), dpi=DOTS_PER_INCH)
    for line in costs():
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
