"""Partition function: low and high estimate of log Z, which converge as more denoiser samples are averaged."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflows.reporting.figures.style import ACCENTS, End, finish, label_ends, line, scale, sheet
from workflows.reporting.quantities import Quantity, column, measured
from workflows.reporting.sampler_labels import Row, energies, title

COLUMNS = 3
PANEL_INCHES, FRAME_INCHES = 2.8, 0.8
COLOUR = ACCENTS[0]

DRAWS = Quantity("samples averaged, n", "", column("draws"), base=2)
LOW = Quantity("log Z, low end", "nats per token", column("low_nats_per_token"), column("low_standard_error"))
HIGH = Quantity("log Z, high end", "nats per token", column("high_nats_per_token"), column("high_standard_error"))


def partition_figure(partition: Sequence[Row]) -> Figure:
    """Plot both estimates of log Z against n, one panel per energy, each with its own scale."""
    shown = energies(partition)
    lines = -(-len(shown) // COLUMNS)
    figure = sheet(
        "log Z between its low and its high estimate, against the number of samples", PANEL_INCHES * lines + 0.6
    )
    grid = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for i, (axes, energy) in enumerate(zip(grid, shown, strict=False)):
        rows = sorted((row for row in partition if row["energy"] == energy), key=lambda row: row["draws"])
        _panel(axes, rows)
        finish(axes, DRAWS.axis, "log Z, nats per token" if i % COLUMNS == 0 else "", title(energy))
        ends = [
            End(name, row["draws"], end.value(row), COLOUR)
            for name, end in (("high end", HIGH), ("low end", LOW))
            for row in measured(rows, DRAWS, end)[-1:]
        ]
        label_ends(axes, ends, PANEL_INCHES - FRAME_INCHES)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    both = measured(rows, DRAWS, LOW, HIGH)
    axes.fill_between(
        [row["draws"] for row in both], [LOW.value(row) for row in both], [HIGH.value(row) for row in both],
        color=COLOUR, alpha=0.15, linewidth=0,
    )  # fmt: skip
    line(axes, rows, DRAWS, LOW, COLOUR, "^", "-")
    line(axes, rows, DRAWS, HIGH, COLOUR, "v", "--")
    scale(axes, DRAWS, rows)
