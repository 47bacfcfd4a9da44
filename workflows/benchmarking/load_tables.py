"""The tables of a load: how much was made, how long each number of steps took, and what became of the rest."""

from collections.abc import Mapping, Sequence
from typing import get_args

from workflows.benchmarking.load import Ending, RequestOutcome
from workflows.benchmarking.summary import PERCENTS, by_steps, percentile, summary
from workflows.reporting.document import Table

NONE = "–"


def endings_table(caption: str, loads: Mapping[str, Sequence[RequestOutcome]], deadline: float) -> Table:
    """What became of the requests of every load, and what was made a second."""
    rows = []
    for name, outcomes in loads.items():
        found = summary(outcomes, deadline)
        rows.append(
            (
                name, str(found.count), *(str(found.endings.get(ending, 0)) for ending in get_args(Ending)),
                f"{found.texts_per_second:.2f}", f"{found.tokens_per_second:.0f}", f"{found.goodput:.2f}",
            )
        )  # fmt: skip
    columns = ("service", "sent", *get_args(Ending), "texts a second", "tokens a second", "goodput a second")
    return Table(caption, columns, rows)


def latency_table(caption: str, loads: Mapping[str, Sequence[RequestOutcome]]) -> Table:
    """Seconds from when a request was due to its end, by its number of steps; of those that were done."""
    rows = []
    for name, outcomes in loads.items():
        for steps, done in by_steps(outcomes).items():
            seconds = [one.seconds for one in done]
            first = [one.first_seconds for one in done if one.first_seconds is not None]
            rows.append(
                (
                    name, str(steps), str(len(done)), *(_seconds(percentile(seconds, percent)) for percent in PERCENTS),
                    _seconds(percentile(first, 50)) if first else NONE,
                )
            )  # fmt: skip
    columns = ("service", "T", "done", *(f"p{percent}, s" for percent in PERCENTS), "first state, p50, s")
    return Table(caption, columns, rows)


def _seconds(value: float) -> str:
    return f"{value:.3g}"
