"""Bound figures: bound of every sampler against T and against cost, and paired gain over plain diffusion."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from workflows.reporting.figures.curves import curves, frontier, highest, lowest
from workflows.reporting.figures.style import ReferenceLine
from workflows.reporting.quantities import BOUND, CALLS, GAIN, STEPS, TEXT_SECONDS, Quantity
from workflows.reporting.sampler_labels import Row
from workflows.row_names import PLAIN


def bound_figure(summary: Row, bounds: Sequence[Row]) -> Figure:
    """Plot the T-step bound against T."""
    name = "T-step bounds of the samplers against the number of steps (lower is better)"
    return curves(name, bounds, STEPS, BOUND, levels(summary), lowest, "best sampler of each energy at each T")


def bound_calls_figure(summary: Row, bounds: Sequence[Row]) -> Figure:
    """Plot the T-step bound against network calls; each candidate counts as one call."""
    name = "T-step bounds against network calls (lower and further left is better)"
    return _against_cost(name, CALLS, summary, bounds)


def bound_seconds_figure(summary: Row, bounds: Sequence[Row]) -> Figure:
    """Plot the T-step bound against seconds."""
    name = "T-step bounds against seconds (lower and further left is better)"
    return _against_cost(name, TEXT_SECONDS, summary, bounds)


def gain_figure(bounds: Sequence[Row]) -> Figure:
    """Plot the gain of each sampler over plain diffusion at the same T, with paired errors."""
    name = "Gain over plain diffusion at the same T, errors paired by sequence (higher is better)"
    rows = [row for row in bounds if row["energy"] != PLAIN]
    zero = [ReferenceLine("plain diffusion", 0.0, dash="-")]
    return curves(name, rows, STEPS, GAIN, zero, highest, "best sampler of each energy at each T")


def levels(summary: Row) -> list[ReferenceLine]:
    """Return the reference levels: the denoiser's NELBO, and the source entropy or else the autoregressive model."""
    references = []
    entropy, ar, nelbo = (
        summary.get(name) for name in ("entropy_nats_per_token", "autoregressive_nll", "denoiser_nelbo")
    )
    if nelbo is not None:
        references.append(ReferenceLine("NELBO, T = ∞", nelbo["nats_per_token"], nelbo["standard_error"]))
    if entropy is not None:
        references.append(ReferenceLine("entropy of the source", entropy, dash="-."))
    elif ar is not None:
        references.append(ReferenceLine("AR model", ar["nats_per_token"], ar["standard_error"], "-."))
    return references


def _against_cost(name: str, cost: Quantity, summary: Row, bounds: Sequence[Row]) -> Figure:
    return curves(name, bounds, cost, BOUND, levels(summary), frontier, "frontier of each energy")
