"""Quality figures: judge scores of each sampler's texts, against cost and against entropy."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from workflows.reporting.figures.curves import curves, frontier, lowest
from workflows.reporting.figures.style import ReferenceLine
from workflows.reporting.quantities import CALLS, ENTROPY, JUDGED, TEXT_SECONDS, Quantity, measured
from workflows.reporting.sampler_labels import Row, series
from workflows.row_names import AUTOREGRESSIVE, DATA, PLAIN, REPEATER


def quality_figure(quality: Sequence[Row]) -> Figure:
    """Plot the judge's nats per token against the entropy of the same texts: lower is better only at equal entropy."""
    name = "Judge's score against the entropy of the texts (lower is better at equal entropy)"
    if len({row.get("token_temperature", 1.0) for row in quality}) == 1:
        note = "best sampler of each energy at each T, joined in the order of T"
        return curves(name, quality, ENTROPY, JUDGED, [], lowest, note)
    most = max(row["steps"] for row in quality if row["energy"] == PLAIN)
    swept = [row for row in quality if row["steps"] == most or row["energy"] in (DATA, AUTOREGRESSIVE)]
    note = f"T = {most}, most candidates of each energy, joined in the order of the token temperature"
    return curves(name, swept, ENTROPY, JUDGED, [], _sweep, note)


def quality_calls_figure(quality: Sequence[Row]) -> Figure:
    """Plot the judge's nats per token against network calls; each candidate counts as one call."""
    return _against_cost("Judge's score against network calls", CALLS, quality)


def quality_seconds_figure(quality: Sequence[Row]) -> Figure:
    """Plot the judge's nats per token against seconds per text."""
    return _against_cost("Judge's score against seconds", TEXT_SECONDS, quality)


def matched_seconds_figure(matched: Sequence[Row]) -> Figure:
    """Plot the judge's nats per token at the entropy of the data against seconds per text."""
    return _against_cost("Judge's score at the entropy of the data, against seconds", TEXT_SECONDS, matched)


def _sweep(rows: Sequence[Row], x: Quantity, y: Quantity) -> list[Row]:
    """Return the rows of the last sampler of an energy (exact if available) by increasing token temperature."""
    samplers = list(series(measured(rows, x, y)).values())
    return sorted(samplers[-1], key=lambda row: row["token_temperature"]) if samplers else []


def _against_cost(name: str, cost: Quantity, quality: Sequence[Row]) -> Figure:
    data = [
        ReferenceLine("data", JUDGED.value(row), JUDGED.error_of(row), "-.") for row in quality if row["energy"] == DATA
    ]
    rows = [row for row in quality if row["energy"] not in (DATA, REPEATER)]
    note = "frontier of each energy; lower is better only at equal entropy"
    return curves(f"{name} (lower and further left is better)", rows, cost, JUDGED, data, frontier, note)
