"""The figures of an evaluation: bound against steps, and quality against entropy."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]
INK, FAINT = "#22262b", "#b9c0c8"


def bound_figure(summary: Row, bounds: list[Row]) -> Figure:
    """One panel for each energy: its bound against T for every k, plain diffusion and AR beside it."""
    energies = list(dict.fromkeys(row["energy"] for row in bounds if row["energy"] != "plain"))
    columns = min(3, max(1, len(energies)))
    lines = -(-max(1, len(energies)) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.7 * lines), layout="constrained")
    grid = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel()
    plain = [row for row in bounds if row["energy"] == "plain"]
    for axes, energy in zip(grid, energies, strict=False):
        _levels(axes, summary)
        _curve(axes, plain, INK, "plain diffusion", "-")
        _samplers(axes, [row for row in bounds if row["energy"] == energy])
        axes.set_title(energy, loc="left", color=INK, fontweight="bold")
        axes.legend(fontsize=7, frameon=False)
        axes.set_ylim(*_frame(summary, plain))
    for axes in grid[len(energies) :]:
        axes.set_visible(False)
    figure.supxlabel("denoising steps T", color=INK)
    figure.supylabel("bound, nats per token", color=INK)
    figure.suptitle(f"T-step bounds, {summary['experiment']}", x=0.01, ha="left", color=INK, fontweight="bold")
    return figure


def _frame(summary: Row, plain: list[Row]) -> tuple[float, float]:
    """From below the best level to above plain diffusion's worst; what is much worse than that leaves the frame."""
    low = min(summary[name]["nats_per_token"] for name in ("denoiser_nelbo", "autoregressive_nll"))
    high = max(row["bound_nats_per_token"] for row in plain)
    return low - 0.1 * (high - low), high + 0.4 * (high - low)


def _samplers(axes: Axes, rows: list[Row]) -> None:
    many = sorted({row["candidates"] for row in rows}, key=lambda k: k or np.inf)
    shades = dict(zip(many, colormaps["viridis_r"](np.linspace(0.25, 0.9, len(many))), strict=True))
    for k in many:
        name = f"k = {k}" if k else "exact"
        everywhere = [row for row in rows if row["candidates"] == k and row["window_to"] == 1]
        last = [row for row in rows if row["candidates"] == k and (row["window_to"] < 1 or row["steps"] == 1)]
        _curve(axes, everywhere, shades[k], name, "-")
        if any(row["window_to"] < 1 for row in last):
            _curve(axes, last, shades[k], f"{name}, last step only", "--")


def _curve(axes: Axes, rows: list[Row], color: Any, label: str, style: str) -> None:
    rows = sorted({row["steps"]: row for row in rows}.values(), key=lambda row: row["steps"])
    axes.errorbar(
        [row["steps"] for row in rows],
        [row["bound_nats_per_token"] for row in rows],
        yerr=[2 * row["standard_error"] for row in rows],
        color=color, label=label, linestyle=style, marker="o", markersize=3, linewidth=1.4, elinewidth=0.7,
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["steps"] for row in rows}), [str(row["steps"]) for row in rows])
    axes.spines[["top", "right"]].set_visible(False)


def _levels(axes: Axes, summary: Row) -> None:
    for name, label, style in (("denoiser_nelbo", "NELBO, T = ∞", ":"), ("autoregressive_nll", "AR", "-.")):
        axes.axhline(summary[name]["nats_per_token"], color=FAINT, linestyle=style, linewidth=1.2, label=label)


def quality_figure(quality: list[Row]) -> Figure:
    """Nats per token under the judge against the entropy of the same texts: lower at equal entropy is better."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["energy"] for row in quality))
    shades = dict(zip(names, colormaps["tab10"](np.arange(len(names)) % 10), strict=True))
    for row in quality:
        k = row["candidates"] or "exact"
        axes.errorbar(
            row["entropy_nats"], row["nll_nats_per_token"], xerr=row["entropy_standard_error"],
            yerr=row["nll_standard_error"], color=shades[row["energy"]], marker="o", markersize=5,
        )  # fmt: skip
        axes.annotate(
            f"{row['energy']}, T={row['steps']}, k={k}", (row["entropy_nats"], row["nll_nats_per_token"]),
            xytext=(6, 3), textcoords="offset points", fontsize=7, color=INK,
        )  # fmt: skip
    axes.set_xlabel("unigram entropy of the texts, nats", color=INK)
    axes.set_ylabel("judge, nats per token", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.25, y=0.12)
    return figure
