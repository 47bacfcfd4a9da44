"""Calibration figures: separation of data from denoiser samples by an energy, and reliability of sigmoid(-E)."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflows.reporting.figures.style import ERRORS, PALE, SMALL, End, finish, label_ends, sheet
from workflows.reporting.sampler_labels import Row

DATA_COLOUR, SAMPLE_COLOUR = "#0077bb", "#cc6677"
BINS = 30
SHARE_SHOWN = 0.99  # share of the energies within the frame, which excludes the most extreme ones
INCHES = 2.7


def calibration_figure(energy: str, calibration: Sequence[Row]) -> Figure:
    """Plot histograms by t, the reliability curve and the area under the ROC curve of one energy."""
    rows = sorted((row for row in calibration if row["energy"] == energy), key=lambda row: row["t_from"])
    figure = sheet(f"{energy}: data against samples, 1:1", 2 * INCHES + 0.8)
    parts = figure.subfigures(2, 1, squeeze=False)[:, 0]
    panels = parts[0].subplots(1, len(rows), sharey=True, sharex=True, squeeze=False)[0]
    for axes, row in zip(panels, rows, strict=True):
        _histogram(axes, row, _frame(rows))
        first = row is rows[0]
        finish(axes, "energy E, nats", "fraction of the texts" if first else "", _times(row))
    panels[0].legend(frameon=False, fontsize=SMALL, loc="upper left")
    left, right = parts[1].subplots(1, 2)
    _reliability(left, rows)
    _auc(right, rows)
    return figure


def _times(row: Row) -> str:
    return f"t {row['t_from']:g} to {row['t_to']:g}"


def _frame(rows: Sequence[Row]) -> tuple[float, float]:
    values = _finite([value for row in rows for value in (*row["data_energies"], *row["sample_energies"])])
    if not len(values):
        return -1.0, 1.0
    low, high = np.quantile(values, [(1 - SHARE_SHOWN) / 2, (1 + SHARE_SHOWN) / 2])
    return (low, high) if high > low else (low - 1, high + 1)


def _finite(values: Sequence[float]) -> Float64[np.ndarray, " n"]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _histogram(axes: Axes, row: Row, frame: tuple[float, float]) -> None:
    edges = np.linspace(*frame, BINS + 1)
    for name, colour, label in (("data_energies", DATA_COLOUR, "data"), ("sample_energies", SAMPLE_COLOUR, "samples")):
        values = _finite(row[name])
        shares = np.histogram(values, edges)[0] / max(1, len(values))
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.3)
        axes.stairs(shares, edges, color=colour, linewidth=1.3, label=label, linestyle="-" if label == "data" else "--")
    axes.axvline(0, color=PALE, linewidth=0.8, linestyle=":")


def _reliability(axes: Axes, rows: Sequence[Row]) -> None:
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle=":")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    ends = []
    for row, shade in zip(rows, _shades(rows), strict=True):
        bins = [entry for entry in row["bins"] if entry["count"] > 0 and math.isfinite(entry["predicted"])]
        axes.errorbar(
            [entry["predicted"] for entry in bins], [entry["observed"] for entry in bins],
            yerr=[ERRORS * proportion_error(entry["observed"], entry["count"]) for entry in bins],
            color=shade, marker="o", markersize=3.5, linewidth=1.4, elinewidth=0.9,
        )  # fmt: skip
        ends += [End(_times(row), entry["predicted"], entry["observed"], shade) for entry in bins[-1:]]
    finish(axes, "probability of data by the energy, σ(−E)", "fraction of data", "reliability")
    label_ends(axes, [*ends, End("perfect", None, 1.0, PALE)], INCHES - 0.8)


def _auc(axes: Axes, rows: Sequence[Row]) -> None:
    kept = [row for row in rows if math.isfinite(row["auc"])]
    for row, shade in zip(rows, _shades(rows), strict=True):
        if row in kept:
            error = auc_error(row["auc"], pairs_of(row), pairs_of(row))
            axes.errorbar(
                (row["t_from"] + row["t_to"]) / 2, row["auc"], xerr=(row["t_to"] - row["t_from"]) / 2,
                yerr=ERRORS * error, color=shade, marker="o", markersize=5, linewidth=1.4,
            )  # fmt: skip
    axes.axhline(0.5, color=PALE, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(min([0.45, *(row["auc"] - 0.05 for row in kept)]), 1.02)
    finish(axes, "t, from text (0) to all masked (1)", "area under the ROC curve", "data against samples (0.5: chance)")


def _shades(rows: Sequence[Row]) -> list:
    return list(colormaps["viridis_r"](np.linspace(0.3, 0.95, len(rows))))


def pairs_of(row: Row) -> int:
    """Return the number of compared pairs of data and sample; a row stores the energies of the first ones only."""
    return sum(entry["count"] for entry in row["bins"]) // 2


def proportion_error(share: float, count: int) -> float:
    """Return the standard error of a share of `count`.

    Two successes and two failures are added, so that it is not 0 at the ends (Agresti 1998).
    """
    p = (share * count + 2) / (count + 4)
    return math.sqrt(p * (1 - p) / (count + 4))


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """Return the standard error of an area under the ROC curve (Hanley and McNeil 1982, with exponential scores)."""
    if positives < 1 or negatives < 1:
        return math.nan
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))
