"""Figures of a training: loss, learning rate, and gain by noise level."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curves = Mapping[str, Mapping[int, float]]

INK, FAINT, ACCENT, CONTRAST = "#22262b", "#b9c0c8", "#1f5fa8", "#c2541b"
SMOOTHED_SHARE = 0.06  # of the points: the window of the running mean
LOSS, VALIDATION = "loss_nats_per_token", "validation_nats_per_token"
RARE = 20  # a curve with fewer points is not smoothed


def training_curves(metrics: Curves, title: str) -> Figure:
    """Draw one panel each for the loss, the learning rate, and the gain by quarter of t, if there are such metrics.

    `metrics` are values by step, as returned by `Runs.history`. Raises ValueError if none of the three exists.
    """
    gains = gains_by_time(metrics)
    panels = [name for name in (LOSS, "learning_rate") if metrics.get(name)] + (["gain"] if gains else [])
    if not panels:
        raise ValueError(f"nothing to draw: no loss, learning_rate or gain among {sorted(metrics) or 'no metrics'}")
    figure = Figure(figsize=(4.6 * len(panels), 3.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        if panel == "gain":
            draw_gains(axes, gains, "gain by time")
        elif panel == LOSS:
            draw_loss(axes, metrics, "loss")
        else:
            _learning_rate(axes, metrics["learning_rate"])
    return figure


def _learning_rate(axes: Axes, curve: Mapping[int, float]) -> None:
    steps, values = _points(curve)
    exponent = math.floor(math.log10(values.max())) if values.size and values.max() > 0 else 0
    axes.plot(steps, values / 10.0**exponent, color=ACCENT, linewidth=1.8)
    axes.set_ylim(bottom=0)
    _finish(axes, "learning rate", rf"$10^{{{exponent}}}$")


def gains_by_time(metrics: Curves) -> Curves:
    """Return the metrics of the gain, by quarter of t."""
    return {name: curve for name, curve in metrics.items() if "gain" in name and "/t_" in name}


def draw_loss(axes: Axes, metrics: Curves, title: str) -> None:
    """Draw the loss of every step with its running mean, and the validation loss if there is one."""
    validation = metrics.get(VALIDATION)
    _curve(axes, metrics[LOSS], ACCENT, label="training" if validation else None)
    if validation:
        steps, values = _points(validation)
        axes.plot(steps, values, color=CONTRAST, linewidth=1.6, marker="o", markersize=3, label="validation")
        axes.legend(frameon=False, fontsize=8)
    _finish(axes, title, "nats")


def draw_gains(axes: Axes, gains: Curves, title: str) -> None:
    """Draw the gain of each quarter of t: light is little noise, dark is much, in the order of the quarters."""
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    shades = colormaps["viridis_r"](np.linspace(0.15, 0.95, len(gains)))
    for (name, curve), shade in zip(sorted(gains.items()), shades, strict=True):
        start, _, stop = name.rpartition("/t_")[2].partition("_")
        _curve(axes, curve, shade, label=f"{start} to {stop}", raw=False)
    lines, labels = axes.get_legend_handles_labels()
    outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # beside the panel, so that it hides no curve
    axes.legend(lines[::-1], labels[::-1], title="t from", frameon=False, fontsize=8, title_fontsize=8, **outside)
    _finish(axes, title, "nats")


def _curve(axes: Axes, curve: Mapping[int, float], color: object, label: str | None = None, raw: bool = True) -> None:
    steps, values = _points(curve)
    if len(steps) < RARE:
        axes.plot(steps, values, color=color, linewidth=1.6, marker="o", markersize=3, label=label)
        return
    if raw:
        axes.plot(steps, values, color=FAINT, linewidth=0.7)
    axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=label)


def _points(curve: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    finite = [(step, value) for step, value in sorted(curve.items()) if math.isfinite(value)]
    return np.array([step for step, _ in finite]), np.array([value for _, value in finite])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a centered window, which shrinks at both ends."""
    half = max(1, round(SMOOTHED_SHARE * len(values) / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    start, stop = np.maximum(indices - half, 0), np.minimum(indices + half + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.set_ylabel(unit, color=INK, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.margins(x=0.02)
