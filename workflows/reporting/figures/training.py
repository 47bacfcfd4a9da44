"""Training curves: loss of every stage, and gain of each energy by t over the training steps."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.tracking.training_curves import LOSS, SMOOTHED_SHARE, Curves, draw_gains, draw_loss, gains_by_time
from workflows.reporting.figures.style import sheet

LOSS_COLUMNS, GAIN_COLUMNS = 3, 2
PANEL_INCHES = 2.5


def loss_figure(training: Mapping[str, Curves]) -> Figure | None:
    """Plot the loss of every trained stage; return None if there is none."""
    losses = {stage: metrics for stage, metrics in training.items() if metrics.get(LOSS)}
    name = (
        f"Training loss of each stage, and its running mean over {SMOOTHED_SHARE:.0%} of the logged steps "
        "(each stage has its own loss)"
    )
    if not losses:
        return None
    figure, panels = _grid(name, len(losses), LOSS_COLUMNS)
    for axes, (stage, metrics) in zip(panels, losses.items(), strict=True):
        draw_loss(axes, metrics, stage)
    return figure


def gain_by_time_figure(training: Mapping[str, Curves]) -> Figure | None:
    """Plot the gain of a sampling step by quarter of t during energy training; return None if none was logged."""
    gains = {stage: gains_by_time(metrics) for stage, metrics in training.items() if gains_by_time(metrics)}
    name = "Gain of a step during training, by t (for NCE: log k − ranking loss, the gain of the bound)"
    if not gains:
        return None
    figure, panels = _grid(name, len(gains), GAIN_COLUMNS)
    for axes, (stage, curves) in zip(panels, gains.items(), strict=True):
        draw_gains(axes, curves, stage)
    return figure


def _grid(name: str, count: int, columns: int) -> tuple[Figure, list[Axes]]:
    lines = -(-count // columns)
    figure = sheet(name, PANEL_INCHES * lines + 0.5)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])
