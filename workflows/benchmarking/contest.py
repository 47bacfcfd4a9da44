"""A contest: the same loads for services that batch differently, in turns, so that what slows the machine slows all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edlm.config import Fraction, NonNegative, Positive, PositiveFloat, config
from workflows.benchmarking.arrivals import Planned, delayed, plan, together
from workflows.benchmarking.load import Asking, Outcome, load
from workflows.benchmarking.summary import summary

LONG_SEED, SHORT_SEED, OPEN_SEED = 10_000, 20_000, 30_000  # far apart, so that no two loads share a text's seed
HEAD_START = 0.5  # seconds that the long texts have before the first short one


@config
class Loads:
    """What is asked."""

    steps: tuple[Positive, ...] = (4, 16, 64)
    """T of the mix, each equally often."""
    candidates: tuple[NonNegative, ...] = (1,)
    """k of the mix."""
    max_tokens: Positive = 64
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
    open_load: PositiveFloat = 0.7
    """Of the throughput that continuous batching had at saturation: so much is offered in the open loop."""
    open_seconds: PositiveFloat = 20.0
    cancels: Fraction = 0.1
    """Share of the requests in the open loop whose client gives up."""
    cancel_seconds: PositiveFloat = 2.0
    """Within which those give up."""
    deadline_seconds: PositiveFloat = 10.0
    """Of the open loop: goodput counts what is done by then."""
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """The outcomes of every service, by its name."""

    saturated: Mapping[str, Sequence[Sequence[Outcome]]]
    """Of each round."""
    long_short: Mapping[str, Sequence[Outcome]]
    opened: Mapping[str, Sequence[Outcome]]
    rate: float
    """Requests a second that were offered in the open loop."""


def contest(urls: Mapping[str, str], ours: str, wanted: Loads, say: Callable[[str], None]) -> Found:
    """The outcomes of all three loads. How much the open loop offers follows from what `ours` reached at saturation."""
    patient = Asking(max_tokens=wanted.max_tokens, deadline=600.0)
    for url in urls.values():  # what the first requests of a process cost is not counted
        load(url, plan(4, None, (2,), wanted.candidates, seed=wanted.seed), patient)
    saturated: dict[str, list[Sequence[Outcome]]] = {name: [] for name in urls}
    for i in range(wanted.rounds):
        asked = plan(wanted.requests, None, wanted.steps, wanted.candidates, wanted.seed + i * wanted.requests)
        for name in _turned(list(urls), i):
            saturated[name].append(_loaded(urls[name], asked, patient, f"saturation, round {i + 1}, {name}", say))
    reached = [summary(outcomes, patient.deadline).texts_per_second for outcomes in saturated[ours]]
    rate = wanted.open_load * sorted(reached)[len(reached) // 2]
    mixed = _long_and_short(wanted)
    long_short = {name: _loaded(url, mixed, patient, f"long and short, {name}", say) for name, url in urls.items()}
    hurried = replace(patient, deadline=wanted.deadline_seconds, states=True)
    open_plan = plan(
        max(1, round(rate * wanted.open_seconds)), rate, wanted.steps, wanted.candidates, wanted.seed + OPEN_SEED,
        wanted.cancels, wanted.cancel_seconds,
    )  # fmt: skip
    opened = {name: _loaded(url, open_plan, hurried, f"open loop, {name}", say) for name, url in urls.items()}
    return Found(saturated, long_short, opened, rate)


def _loaded(
    url: str, asked: Sequence[Planned], asking: Asking, what: str, say: Callable[[str], None]
) -> Sequence[Outcome]:
    started = time.monotonic()
    outcomes = load(url, asked, asking)
    say(f"{what}: {len(asked)} requests in {time.monotonic() - started:.1f} s")
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
