"""Quality: what a judge makes of each sampler's texts, against what they cost and against their entropy."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from workflows.figures.curves import curves, frontier, lowest
from workflows.figures.style import Level
from workflows.quantities import CALLS, ENTROPY, JUDGED, TEXT_SECONDS, Quantity
from workflows.samplers import DATA, Row


def quality_figure(quality: Sequence[Row]) -> Figure:
    """Nats per token under the judge against the entropy of the same texts: lower counts at equal entropy only."""
    name = "Texts under the judge, against their entropy (lower is better at equal entropy)"
    return curves(
        name, quality, ENTROPY, JUDGED, [], lowest, "best sampler of each energy at each T, joined in the order of T"
    )


def quality_calls_figure(quality: Sequence[Row]) -> Figure:
    """Nats per token under the judge against network calls, each candidate a call."""
    return _against_cost("Texts under the judge against network calls", CALLS, quality)


def quality_seconds_figure(quality: Sequence[Row]) -> Figure:
    """Nats per token under the judge against seconds per text."""
    return _against_cost("Texts under the judge against seconds", TEXT_SECONDS, quality)


def _against_cost(name: str, cost: Quantity, quality: Sequence[Row]) -> Figure:
    data = [Level("data", JUDGED.value(row), JUDGED.error_of(row), "-.") for row in quality if row["energy"] == DATA]
    rows = [row for row in quality if row["energy"] != DATA]
    note = "frontier of each energy: the best for its cost (entropy is in the next figure)"
    return curves(f"{name} (lower and further left is better)", rows, cost, JUDGED, data, frontier, note)
