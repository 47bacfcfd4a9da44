"""A contest: the same loads for services that batch differently, in turns, so that what slows the machine slows all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edlm.config import Fraction, NonNegative, Positive, PositiveFloat, config
from workflows.benchmarking.arrivals import Planned, delayed, plan, together
from workflows.benchmarking.load import Asking, RequestOutcome, load
from workflows.benchmarking.summary import summary

LONG_SEED, SHORT_SEED, OPEN_SEED = 10_000, 20_000, 30_000  # far apart, so that no two loads share a text's seed
PATIENT = Asking(deadline=600.0, spare=600.0)  # a service that knows no deadline is late, and does not hang
HEAD_START = 0.5  # seconds that the long texts have before the first short one


@config
class Loads:
    """What is asked."""

    steps: tuple[Positive, ...] = (4, 16, 64)
    """T of the mix, each equally often."""
    candidates: tuple[NonNegative, ...] = (1,)
    """k of the mix, at saturation."""
    max_tokens: Positive = 256
    requests: Positive = 48
    """Of a round at saturation, where all come at once."""
    rounds: Positive = 3
    long_steps: Positive = 200
    longs: Positive = 8
    """Texts of long_steps that are on their way when the short ones come."""
    short_steps: Positive = 4
    shorts: Positive = 6
    short_gap_seconds: PositiveFloat = 0.5
    """Between short ones, in the mean."""
    open_loads: tuple[PositiveFloat, ...] = (0.7, 1.5)
    """Of the throughput that continuous batching had at saturation: so much is offered in the open loop."""
    open_candidates: tuple[NonNegative, ...] = (1, 8)
    """k of the mix in the open loop."""
    open_seconds: PositiveFloat = 10.0
    cancels: Fraction = 0.1
    """Share of the requests in the open loop whose client gives up."""
    cancel_seconds: PositiveFloat = 2.0
    """Within which those give up."""
    deadline_seconds: PositiveFloat = 15.0
    """Of the open loop: goodput counts what is done by then."""
    seed: int = 0


@dataclass(frozen=True)
class Opened:
    """An open loop."""

    load: float
    """What was offered, as a share of what continuous batching made at saturation."""
    rate: float
    """Requests a second."""
    outcomes: Mapping[str, Sequence[RequestOutcome]]


@dataclass(frozen=True)
class ContestResult:
    """The outcomes of every service, by its name."""

    saturated: Mapping[str, Sequence[Sequence[RequestOutcome]]]
    """Of each round."""
    long_short: Mapping[str, Sequence[RequestOutcome]]
    opened: Sequence[Opened]


def contest(urls: Mapping[str, str], ours: str, wanted: Loads, say: Callable[[str], None]) -> ContestResult:
    """The outcomes of all three loads. How much the open loop offers follows from what `ours` reached at saturation."""
    patient = replace(PATIENT, max_tokens=wanted.max_tokens)
    for name, url in urls.items():  # what the first requests of a process cost is not counted
        _loaded(url, plan(4, None, (2,), wanted.open_candidates, seed=wanted.seed), patient, f"warm-up, {name}", say)
    saturated: dict[str, list[Sequence[RequestOutcome]]] = {name: [] for name in urls}
    for i in range(wanted.rounds):
        asked = plan(wanted.requests, None, wanted.steps, wanted.candidates, wanted.seed + i * wanted.requests)
        for name in _turned(list(urls), i):
            saturated[name].append(_loaded(urls[name], asked, patient, f"saturation, round {i + 1}, {name}", say))
    mixed = _long_and_short(wanted)
    long_short = {name: _loaded(url, mixed, patient, f"long and short, {name}", say) for name, url in urls.items()}
    reached = statistics.median(summary(outcomes, PATIENT.deadline).texts_per_second for outcomes in saturated[ours])
    opened = [_opened(urls, ours, share, share * reached, wanted, say) for share in wanted.open_loads]
    return ContestResult(saturated, long_short, opened)


def _opened(
    urls: Mapping[str, str], ours: str, share: float, rate: float, wanted: Loads, say: Callable[[str], None]
) -> Opened:
    asked = plan(
        max(1, round(rate * wanted.open_seconds)), rate, wanted.steps, wanted.open_candidates, wanted.seed + OPEN_SEED,
        wanted.cancels, wanted.cancel_seconds,
    )  # fmt: skip
    hurried = replace(PATIENT, max_tokens=wanted.max_tokens, deadline=wanted.deadline_seconds, states=True)
    what = f"open loop, {share:.0%} of saturation"
    return Opened(
        share,
        rate,
        {
            name: _loaded(url, asked, hurried, f"{what}, {name}", say, lossless=name == ours)
            for name, url in urls.items()
        },
    )


def _loaded(
    url: str, asked: Sequence[Planned], asking: Asking, what: str, say: Callable[[str], None], lossless: bool = True
) -> Sequence[RequestOutcome]:
    """The outcomes; RuntimeError where a request failed, except that a service that need not be `lossless` may lose
    some, which the table of endings then says."""
    started = time.monotonic()
    outcomes = load(url, asked, asking)
    say(f"{what}: {len(asked)} requests in {time.monotonic() - started:.1f} s")
    wrong = [one for one in outcomes if one.ending in ("failed", "hung") or (lossless and one.ending == "lost")]
    if wrong:
        raise RuntimeError(
            f"{what}: {len(wrong)} of {len(asked)} requests failed, as one that {wrong[0].ending}: {wrong[0].said}"
        )
    return outcomes


def _long_and_short(wanted: Loads) -> tuple[Planned, ...]:
    """Short requests that come one after the other, in no step with them, while the long ones run."""
    longs = plan(wanted.longs, None, (wanted.long_steps,), wanted.candidates[:1], wanted.seed + LONG_SEED)
    shorts = plan(
        wanted.shorts, 1 / wanted.short_gap_seconds, (wanted.short_steps,), wanted.candidates[:1],
        wanted.seed + SHORT_SEED,
    )  # fmt: skip
    return together(longs, delayed(shorts, HEAD_START))


def _turned(names: Sequence[str], turn: int) -> list[str]:
    """The same names, beginning with another one in every round."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]
