"""Tables of a load: throughput, latency by number of steps, and the endings of the requests."""

from collections.abc import Mapping, Sequence
from typing import get_args

from workflows.benchmarking.load import Ending, RequestOutcome
from workflows.benchmarking.summary import PERCENTS, by_steps, percentile, summary
from workflows.reporting.document import Table

NONE = "–"


def endings_table(caption: str, loads: Mapping[str, Sequence[RequestOutcome]], deadline: float) -> Table:
    """Return the endings of the requests of every load, and its throughput per second."""
    rows = []
    for name, outcomes in loads.items():
        totals = summary(outcomes, deadline)
        rows.append(
            (
                name, str(totals.count), *(str(totals.endings.get(ending, 0)) for ending in get_args(Ending)),
                f"{totals.texts_per_second:.2f}", f"{totals.tokens_per_second:.0f}", f"{totals.goodput:.2f}",
            )
        )  # fmt: skip
    columns = ("service", "sent", *get_args(Ending), "texts per second", "tokens per second", "goodput per second")
    return Table(caption, columns, rows)


def latency_table(caption: str, loads: Mapping[str, Sequence[RequestOutcome]]) -> Table:
    """Return the seconds from due time to end of the requests that were done, by number of steps."""
    rows = []
    for name, outcomes in loads.items():
        for steps, done in by_steps(outcomes).items():
            seconds = [outcome.seconds for outcome in done]
            first = [outcome.first_seconds for outcome in done if outcome.first_seconds is not None]
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
