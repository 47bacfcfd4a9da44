"""A summary of a load: how much was made, how long it took, and what was refused."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workflows.benchmarking.load import Ending, RequestOutcome

PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class LoadSummary:
    """What became of all requests of a load."""

    count: int
    endings: Mapping[Ending, int]
    seconds: float
    """From the start to the end of the last request."""
    texts_per_second: float
    tokens_per_second: float
    goodput: float
    """Texts that were done within the deadline, a second."""


def summary(outcomes: Sequence[RequestOutcome], deadline: float) -> LoadSummary:
    """The summary; of no outcomes there is none."""
    seconds = max(one.request.at + one.seconds for one in outcomes)
    done = [one for one in outcomes if one.ending == "done"]
    in_time = sum(one.seconds <= deadline for one in done)
    tokens = sum(one.tokens for one in done)
    endings: Counter[Ending] = Counter(one.ending for one in outcomes)
    return LoadSummary(len(outcomes), endings, seconds, len(done) / seconds, tokens / seconds, in_time / seconds)


def percentile(values: Iterable[float], percent: float) -> float:
    """The least of the values that at least so many percent of them do not exceed; nan where there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def by_steps(outcomes: Sequence[RequestOutcome]) -> dict[int, list[RequestOutcome]]:
    """Those that were done, by how many steps they asked for, the fewest first."""
    done = [one for one in outcomes if one.ending == "done"]
    return {
        steps: [one for one in done if one.request.steps == steps]
        for steps in sorted({one.request.steps for one in done})
    }
