"""Load: the requests of a load, and the summary of their outcomes."""

import asyncio
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from cluster.http.local import listening
from tests.client.protocol import DETAILS, STATE, USAGE, event, refusal
from workflows.benchmarking.arrivals import PlannedRequest, delayed, plan, poisson, together
from workflows.benchmarking.load import RequestOutcome, RequestSettings, burst, load
from workflows.benchmarking.load_tables import endings_table, latency_table
from workflows.benchmarking.serve_document import ratios
from workflows.benchmarking.summary import by_steps, percentile, summary

DONE, BUSY, LATE, SILENT, CUT, BROKEN = 1, 2, 3, 4, 5, 6  # what the service below does, by the steps it is asked for


async def answer(request: Request):
    body = await request.json()
    match body["edlm"]["steps"]:
        case 2:
            return refusal(429, "overloaded", None, {"retry-after": "3"})
        case 3:
            return refusal(504, "deadline_exceeded", None)
        case 4:
            await asyncio.sleep(60)
        case 6:
            return refusal(500, "engine_error", None)
    if body.get("stream"):
        lines = [
            event({"choices": [], "edlm": {"state": STATE | {"denoiser_calls": 0}}}),
            event({"choices": [], "edlm": {"state": STATE}}),
        ]
        if body["edlm"]["steps"] == DONE:
            lines += [event({"choices": [], "usage": USAGE, "edlm": {"details": DETAILS}}), "data: [DONE]\n\n"]
        return StreamingResponse(iter(lines), media_type="text/event-stream")
    choice = {"index": 0, "text": "ab", "finish_reason": "length"}
    return JSONResponse({"id": "c", "model": "m", "choices": [choice], "usage": USAGE, "edlm": DETAILS})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])) as at:
        yield at


def outcome(steps: int, seconds: float, ending="done", at: float = 0.0) -> RequestOutcome:
    return RequestOutcome(PlannedRequest(at, steps, 1, 0), ending, seconds, tokens=10 if ending == "done" else 0)


def test_arrivals_are_a_poisson_process():
    times = poisson(20_000, 5.0, seed=1)
    gaps = [after - before for before, after in pairwise((0.0, *times))]
    # Exponential gaps: mean and deviation 1 / rate, and one second holds none with probability e^-5.
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=4 / math.sqrt(len(gaps)))
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.05)
    counts = Counter(math.floor(at) for at in times)
    whole = math.floor(times[-1])
    each = [counts[second] for second in range(whole)]
    assert statistics.mean(each) == pytest.approx(5, rel=0.05)
    assert statistics.variance(each) == pytest.approx(5, rel=0.1)


def test_a_plan_is_the_seeds_and_has_each_kind_equally_often():
    made = plan(60, 2.0, (4, 16, 64), (1, 8), seed=3, cancelled_share=0.25, cancel_seconds=2.0)
    assert made == plan(60, 2.0, (4, 16, 64), (1, 8), seed=3, cancelled_share=0.25, cancel_seconds=2.0)
    assert made != plan(60, 2.0, (4, 16, 64), (1, 8), seed=4, cancelled_share=0.25, cancel_seconds=2.0)
    assert set(Counter((request.steps, request.candidates) for request in made).values()) == {10}
    assert sum(request.cancel_after is not None for request in made) == 15
    assert [request.steps for request in made] != sorted(request.steps for request in made)
    assert len({request.seed for request in made}) == 60
    assert {request.at for request in plan(6, None, (4,), (1,), seed=3)} == {0.0}


def test_plans_are_joined_in_the_order_of_their_times():
    late = delayed(plan(2, None, (4,), (1,), seed=0), 0.5)
    joined = together(late, plan(2, None, (9,), (1,), seed=0))
    assert [(request.at, request.steps) for request in joined] == [(0.0, 9), (0.0, 9), (0.5, 4), (0.5, 4)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 100))
@settings(deadline=None)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values, percent):
    actual = percentile(values, percent)
    enough = [value for value in values if 100 * sum(other <= value for other in values) >= percent * len(values)]
    assert actual == min(enough)


def test_of_no_values_there_is_no_percentile():
    assert math.isnan(percentile([], 50))


def test_goodput_counts_what_was_done_in_time_and_throughput_all_that_was_done():
    outcomes = [outcome(4, 1.0), outcome(4, 3.0), outcome(4, 0.5, "busy"), outcome(4, 2.0, at=8.0)]
    actual = summary(outcomes, deadline=2.0)
    assert (actual.seconds, actual.texts_per_second, actual.tokens_per_second, actual.goodput) == (10.0, 0.3, 3.0, 0.2)
    assert actual.endings == {"done": 3, "busy": 1}


def test_latencies_are_of_what_was_done_by_its_steps():
    outcomes = [outcome(16, 2.0), outcome(4, 1.0), outcome(4, 9.0, "busy")]
    assert {steps: len(each) for steps, each in by_steps(outcomes).items()} == {4: 1, 16: 1}
    table = latency_table("seconds", {"ours": outcomes})
    assert [row[:4] for row in table.rows] == [("ours", "4", "1", "1"), ("ours", "16", "1", "2")]
    assert endings_table("all", {"ours": outcomes}, 5.0).rows[0][:4] == ("ours", "3", "2", "1")


def test_ratios_are_of_the_same_round():
    assert ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == "2.00 (1.00 to 3.00)"


@pytest.mark.parametrize("states", [False, True])
def test_every_ending_is_distinguished(url, states):
    kinds = [DONE, BUSY, LATE, SILENT, CUT if states else BROKEN, DONE]
    requests = [PlannedRequest(0.0, steps, 1, seed, 0.2 if seed == 3 else None) for seed, steps in enumerate(kinds)]
    outcomes = load(url, requests, RequestSettings(deadline=20.0, states=states))
    assert [outcome.ending for outcome in outcomes] == [
        "done", "busy", "late", "cancelled", "lost" if states else "failed", "done"
    ]  # fmt: skip
    assert [outcome.request for outcome in outcomes] == requests
    assert (outcomes[1].retry_after, outcomes[0].tokens, outcomes[2].tokens) == (3.0, 2, 0)
    assert (outcomes[0].first_seconds is not None) == states
    assert outcomes[4].error_message


def test_a_request_without_an_answer_hangs_and_ends_the_load_all_the_same(url):
    (actual,) = load(url, [PlannedRequest(0.0, SILENT, 1, 0)], RequestSettings(deadline=0.1, spare=0.2))
    assert actual.ending == "hung"
    assert actual.seconds >= 0.3


def test_a_service_that_is_not_there_loses_every_request():
    assert {end.ending for end in load("http://127.0.0.1:9", plan(3, None, (4,), (1,), 0), RequestSettings())} == {
        "lost"
    }


def test_a_request_is_sent_when_it_is_due_though_others_wait(url):
    requests = [PlannedRequest(0.0, SILENT, 1, 0), PlannedRequest(0.3, DONE, 1, 1)]
    silent, done = load(url, requests, RequestSettings(deadline=0.5, spare=0.5))
    assert (silent.ending, done.ending) == ("hung", "done")
    assert done.seconds < silent.seconds


def test_a_burst_comes_at_once(url):
    actual = burst(url, [PlannedRequest(at, DONE, 1, i) for i, at in enumerate((0.0, 500.0))], deadline=20.0)
    assert [(outcome.request.at, outcome.ending) for outcome in actual] == [(0.0, "done"), (0.0, "done")]
