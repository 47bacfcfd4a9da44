"""Summary of a load: throughput, duration, and endings such as rejections."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workflows.benchmarking.load import Ending, RequestOutcome

PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class LoadSummary:
    """Totals over all requests of a load."""

    count: int
    endings: Mapping[Ending, int]
    seconds: float
    """From the start to the end of the last request."""
    texts_per_second: float
    tokens_per_second: float
    goodput: float
    """Texts done within the deadline, per second."""


def summary(outcomes: Sequence[RequestOutcome], deadline: float) -> LoadSummary:
    """Summarize the outcomes, of which there must be at least one."""
    seconds = max(outcome.request.at + outcome.seconds for outcome in outcomes)
    done = [outcome for outcome in outcomes if outcome.ending == "done"]
    in_time = sum(outcome.seconds <= deadline for outcome in done)
    tokens = sum(outcome.tokens for outcome in done)
    endings: Counter[Ending] = Counter(outcome.ending for outcome in outcomes)
    return LoadSummary(len(outcomes), endings, seconds, len(done) / seconds, tokens / seconds, in_time / seconds)


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the least value that at least `percent` percent of the values do not exceed; nan without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def by_steps(outcomes: Sequence[RequestOutcome]) -> dict[int, list[RequestOutcome]]:
    """Group the outcomes that are done by number of steps, the fewest first."""
    done = [outcome for outcome in outcomes if outcome.ending == "done"]
    return {
        steps: [outcome for outcome in done if outcome.request.steps == steps]
        for steps in sorted({outcome.request.steps for outcome in done})
    }
