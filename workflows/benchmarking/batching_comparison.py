"""Contest: the same loads for services that batch differently, interleaved, so that a slow machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edlm.config import Fraction, NonNegative, Positive, PositiveFloat, config
from workflows.benchmarking.arrivals import PlannedRequest, delayed, plan, together
from workflows.benchmarking.load import RequestOutcome, RequestSettings, load
from workflows.benchmarking.summary import summary

LONG_SEED, SHORT_SEED, OPEN_SEED = 10_000, 20_000, 30_000  # far apart, so that no two loads share a text's seed
PATIENT = RequestSettings(deadline=600.0, spare=600.0)  # a service without deadlines is late, not hung
HEAD_START = 0.5  # seconds from the long texts to the first short one


@config
class Loads:
    """Settings of the three loads."""

    steps: tuple[Positive, ...] = (4, 16, 64)
    """T of the mix, each equally often."""
    candidates: tuple[NonNegative, ...] = (1,)
    """k of the mix at saturation."""
    max_tokens: Positive = 256
    """Tokens per text."""
    requests: Positive = 48
    """Requests per round at saturation, where all arrive at once."""
    rounds: Positive = 3
    """Rounds at saturation, in turn over the services."""
    long_steps: Positive = 200
    """T of the long texts."""
    long_requests: Positive = 8
    """Texts of `long_steps` that are running when the short ones arrive."""
    short_steps: Positive = 4
    """T of the short texts that arrive while long ones run."""
    short_requests: Positive = 6
    """Number of short texts."""
    short_gap_seconds: PositiveFloat = 0.5
    """Mean time between short texts."""
    open_loads: tuple[PositiveFloat, ...] = (0.7, 1.5)
    """Load offered in the open loop, as shares of the throughput of continuous batching at saturation."""
    open_candidates: tuple[NonNegative, ...] = (1, 8)
    """k of the mix in the open loop."""
    open_seconds: PositiveFloat = 10.0
    """Time over which the requests of an open loop arrive."""
    cancelled_share: Fraction = 0.1
    """Share of the requests in the open loop that their clients cancel."""
    cancel_seconds: PositiveFloat = 2.0
    """Time within which those are cancelled."""
    deadline_seconds: PositiveFloat = 15.0
    """Deadline in the open loop; goodput counts the requests done by then."""
    seed: int = 0
    """Seed of the arrivals, of the mix and of the cancellations."""


@dataclass(frozen=True)
class OpenLoopResult:
    """The result of one open loop."""

    load: float
    """Offered load, as a share of the throughput of continuous batching at saturation."""
    rate: float
    """Requests per second."""
    outcomes: Mapping[str, Sequence[RequestOutcome]]


@dataclass(frozen=True)
class ContestResult:
    """The outcomes of every service, by its name."""

    saturated: Mapping[str, Sequence[Sequence[RequestOutcome]]]
    """Per round."""
    long_short: Mapping[str, Sequence[RequestOutcome]]
    opened: Sequence[OpenLoopResult]


def contest(urls: Mapping[str, str], ours: str, settings: Loads, say: Callable[[str], None]) -> ContestResult:
    """Run all three loads and return their outcomes; the saturation throughput of `ours` sets the open loop's rate."""
    patient = replace(PATIENT, max_tokens=settings.max_tokens)
    for name, url in urls.items():  # warm-up: the cost of a process's first requests is not counted
        _loaded(
            url, plan(4, None, (2,), settings.open_candidates, seed=settings.seed), patient, f"warm-up, {name}", say
        )
    saturated: dict[str, list[Sequence[RequestOutcome]]] = {name: [] for name in urls}
    for i in range(settings.rounds):
        requests = plan(
            settings.requests, None, settings.steps, settings.candidates, settings.seed + i * settings.requests
        )
        for name in _turned(list(urls), i):
            saturated[name].append(_loaded(urls[name], requests, patient, f"saturation, round {i + 1}, {name}", say))
    mixed = _long_and_short(settings)
    long_short = {name: _loaded(url, mixed, patient, f"long and short, {name}", say) for name, url in urls.items()}
    reached = statistics.median(summary(outcomes, PATIENT.deadline).texts_per_second for outcomes in saturated[ours])
    opened = [_opened(urls, ours, share, share * reached, settings, say) for share in settings.open_loads]
    return ContestResult(saturated, long_short, opened)


def _opened(
    urls: Mapping[str, str], ours: str, share: float, rate: float, settings: Loads, say: Callable[[str], None]
) -> OpenLoopResult:
    requests = plan(
        max(1, round(rate * settings.open_seconds)), rate, settings.steps, settings.open_candidates,
        settings.seed + OPEN_SEED, settings.cancelled_share, settings.cancel_seconds,
    )  # fmt: skip
    request_settings = replace(PATIENT, max_tokens=settings.max_tokens, deadline=settings.deadline_seconds, states=True)
    label = f"open loop, {share:.0%} of saturation"
    return OpenLoopResult(
        share,
        rate,
        {
            name: _loaded(url, requests, request_settings, f"{label}, {name}", say, lossless=name == ours)
            for name, url in urls.items()
        },
    )


def _loaded(
    url: str,
    requests: Sequence[PlannedRequest],
    request_settings: RequestSettings,
    label: str,
    say: Callable[[str], None],
    lossless: bool = True,
) -> Sequence[RequestOutcome]:
    """Return the outcomes. Raise RuntimeError if a request failed or hung.

    A lost request is a failure, too, unless the service need not be `lossless`; the table of endings shows it then.
    """
    started = time.monotonic()
    outcomes = load(url, requests, request_settings)
    say(f"{label}: {len(requests)} requests in {time.monotonic() - started:.1f} s")
    failed = [
        outcome
        for outcome in outcomes
        if outcome.ending in ("failed", "hung") or (lossless and outcome.ending == "lost")
    ]
    if failed:
        raise RuntimeError(
            f"{label}: {len(failed)} of {len(requests)} requests failed, as one that {failed[0].ending}: "
            f"{failed[0].error_message}"
        )
    return outcomes


def _long_and_short(settings: Loads) -> tuple[PlannedRequest, ...]:
    """Plan short requests that arrive one after another, unsynchronized with the long ones, while those run."""
    long_requests = plan(
        settings.long_requests, None, (settings.long_steps,), settings.candidates[:1], settings.seed + LONG_SEED
    )
    short_requests = plan(
        settings.short_requests, 1 / settings.short_gap_seconds, (settings.short_steps,), settings.candidates[:1],
        settings.seed + SHORT_SEED,
    )  # fmt: skip
    return together(long_requests, delayed(short_requests, HEAD_START))


def _turned(names: Sequence[str], turn: int) -> list[str]:
    """Rotate the names, so that every round begins with another one."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]
