"""Clients that disconnect, do not read, ask for too much or are late delay no other client, and are counted once."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.http.limits.settings import RequestLimits
from cluster.http.local import Service, serving
from cluster.http.metrics.instruments import CANCELLED, REJECTED, REQUESTS
from cluster.http.streaming import sse_events
from cluster.http.warmup import WarmupFailure, warmed, warming
from edlm.cooperative_work import run_to_end
from edlm.inference.request import Limits
from edlm.inference.statistics import Statistics
from edlm.sampling.unmasking import Remasking
from tests.cluster.asking import COMPLETIONS, INFILL, ask, error, eventually, stream
from tests.cluster.asking import events as read_events
from tests.cluster.conftest import PATIENT
from tests.engines import Gate, watched

LONG = {"max_tokens": 4096, "seed": 1, "edlm": {"steps": 12, "candidates": 1}}  # seconds of work
SLOW = RequestLimits(max_seconds=3600)  # the tests' machine may be slow
SHORT = {"max_tokens": 4, "seed": 1}


@pytest.fixture
def fresh(generator) -> Iterator[Service]:
    """A service of the test's own, whose counts begin at nothing."""
    with serving(generator, "7/0", request_limits=SLOW, limits=PATIENT) as service:
        yield service


def counts(service: Service) -> Statistics:
    return service.endpoint.engine.statistics()


def empty(service: Service) -> bool:
    """Whether nothing is in progress, and every text that was submitted has ended once."""
    now = counts(service)
    return now.running == now.waiting == 0 and now.submitted == sum(now.finished.values())


def connected(service: Service, path: str, body: dict) -> socket.socket:
    """A connection on which a request was sent and nothing was read."""
    parts = urlsplit(service.url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
    sent = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)
    return connection


@pytest.mark.parametrize(
    "more", [{}, {"stream": True}, {"n": 4}, {"stream": True, "stream_options": {"denoising": True}}]
)
def test_a_client_that_disconnects_frees_its_slot_at_the_next_step(fresh, more):
    with closing(connected(fresh, COMPLETIONS, {**LONG, **more})):
        eventually(lambda: counts(fresh).rows > 0)
        assert not empty(fresh)
    eventually(lambda: empty(fresh))
    assert counts(fresh).finished == {"cancelled": more.get("n", 1)}
    eventually(lambda: fresh.metrics.value(CANCELLED) == 1)
    assert ask(fresh.url, COMPLETIONS, SHORT).status_code == 200


def test_a_client_that_hangs_up_while_it_waits_costs_nothing(generator):
    with serving(generator, "7/0", request_limits=SLOW, limits=Limits(slots=1, patience_seconds=600)) as service:
        with closing(connected(service, COMPLETIONS, LONG)):
            eventually(lambda: counts(service).running == 1)
            with closing(connected(service, COMPLETIONS, {**LONG, "seed": 2})):
                eventually(lambda: counts(service).waiting == 1)
            eventually(lambda: counts(service).finished.get("cancelled") == 1)
            eventually(lambda: counts(service).running == 1)  # the place is taken again at the next turn
        eventually(lambda: empty(service))


def test_a_client_whose_own_clock_ends_first_is_no_longer_worked_for(fresh):
    with pytest.raises(httpx.ReadTimeout):
        ask(fresh.url, COMPLETIONS, LONG, timeout=0.3)
    eventually(lambda: empty(fresh))
    assert counts(fresh).finished == {"cancelled": 1}


def test_a_client_that_hangs_up_at_the_end_is_counted_once(fresh):
    for _ in range(5):
        connection = connected(fresh, COMPLETIONS, {**SHORT, "stream": True})
        connection.recv(1)
        connection.close()
    eventually(lambda: empty(fresh))
    families = lambda: {family.name: family for family in text_string_to_metric_families(fresh.metrics.text())}  # noqa: E731
    eventually(lambda: sum(sample.value for sample in families()["edlm_requests"].samples) == 5)


def test_a_score_whose_client_is_gone_is_cancelled(fresh):
    body = {"text": "hello", "draws": 64, "edlm": {"steps": 200, "candidates": 1}}
    with closing(connected(fresh, "/v1/score", body)):
        eventually(lambda: counts(fresh).running == 1)
    eventually(lambda: empty(fresh))
    assert counts(fresh).finished == {"cancelled": 1}


def test_a_client_that_does_not_read_is_left_at_its_deadline(fresh, monkeypatch):
    monkeypatch.setattr(sse_events, "PATIENCE_SECONDS", 0.1)
    body = {**LONG, "n": 3, "stream": True, "stream_options": {"denoising": True}}
    body["edlm"] = {**LONG["edlm"], "timeout_seconds": 1.0}
    with closing(connected(fresh, COMPLETIONS, body)):
        eventually(lambda: counts(fresh).submitted == 3)
        eventually(lambda: empty(fresh))
        assert counts(fresh).finished.get("expired") or counts(fresh).finished.get("length") == 3
        assert ask(fresh.url, COMPLETIONS, SHORT).status_code == 200


def test_a_deadline_ends_a_request_before_and_after_it_has_begun(fresh):
    early = {**SHORT, "edlm": {"timeout_seconds": 1e-9}}
    for path, body in ((COMPLETIONS, early), (INFILL, {"parts": [3], "edlm": {"timeout_seconds": 1e-9}})):
        assert error(ask(fresh.url, path, body), 504)["code"] == "deadline_exceeded"
    late = {**LONG, "edlm": {**LONG["edlm"], "timeout_seconds": 0.5}}
    assert error(ask(fresh.url, COMPLETIONS, late), 504)["code"] == "deadline_exceeded"
    eventually(lambda: empty(fresh))
    eventually(lambda: fresh.metrics.value(REQUESTS, COMPLETIONS, "504", "none") == 2)


def test_the_servers_own_deadline_ends_every_request(generator):
    with serving(generator, "7/0", request_limits=RequestLimits(max_seconds=0.5), limits=PATIENT) as service:
        assert error(ask(service.url, COMPLETIONS, LONG), 504)["code"] == "deadline_exceeded"
        assert ask(service.url, COMPLETIONS, SHORT).status_code == 200


def test_a_burst_is_answered_or_has_retry_after_and_leaves_nothing(generator):
    limits = Limits(slots=2, waiting=4, patience_seconds=600)
    with serving(generator, "7/0", request_limits=SLOW, limits=limits) as service:
        alone = ask(service.url, COMPLETIONS, SHORT).json()["choices"]
        body = {"max_tokens": 60, "edlm": {"steps": 6, "candidates": 1}}
        with ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(lambda seed: ask(service.url, COMPLETIONS, {**body, "seed": seed}), range(60)))
        refused = [answer for answer in answers if answer.status_code == 429]
        accepted = [answer for answer in answers if answer.status_code == 200]
        assert len(refused) + len(accepted) == 60
        assert refused
        assert len(accepted) >= 6
        for answer in refused:
            assert error(answer, 429)["type"] == "rate_limit_error"
            assert int(answer.headers["retry-after"]) >= 1
        eventually(lambda: service.metrics.value(REJECTED, "waiting") == len(refused))
        eventually(lambda: empty(service))
        assert ask(service.url, COMPLETIONS, SHORT).json()["choices"] == alone


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (COMPLETIONS, {"n": 4}, "n"),
        (COMPLETIONS, {"best_of": 4, "max_tokens": 4}, "best_of"),
        (COMPLETIONS, {"prompt": ["a"] * 4}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 3, "n": 2, "stream": True}, "prompt"),
        (INFILL, {"parts": [3], "n": 4}, "n"),
    ],
)
def test_more_texts_in_one_request_than_slots_and_queue_hold_are_refused(generator, path, more, param):
    request_limits = RequestLimits(
        work_per_second=1e-3, burst_seconds=1e3
    )  # one pass: enough for one request, and no other
    with serving(generator, "7/0", request_limits=request_limits, limits=Limits(slots=1, waiting=2)) as service:
        for _ in range(2):  # and it costs nothing
            refused = error(ask(service.url, path, more), 400)
            assert refused["param"] == param
            assert "at most 3" in refused["message"]


def test_what_the_engine_cannot_do_costs_nothing_and_blames_no_field(generator):
    unmasking = Remasking(share=0.5)
    generator.bundle = replace(generator.bundle, sampler=replace(generator.bundle.sampler, unmasking=unmasking))
    request_limits = RequestLimits(work_per_second=1e-3, burst_seconds=1e3)
    with serving(generator, "7/0", request_limits=request_limits, limits=PATIENT) as service:
        for _ in range(2):
            refused = error(ask(service.url, COMPLETIONS, SHORT), 400)
            assert refused["param"] is None
            assert "remasking" in refused["message"]


def test_a_model_whose_own_sampler_cannot_be_served_is_not_warmed(generator):
    unmasking = Remasking(share=0.5)
    generator.bundle = replace(generator.bundle, sampler=replace(generator.bundle.sampler, unmasking=unmasking))
    with pytest.raises(ValueError, match=r"'tiny' cannot be served.* remasking"):
        warmed(generator)
    failure = run_to_end(warming(generator, "cpu"))
    assert isinstance(failure, WarmupFailure)
    assert "cannot be served" in str(failure.error)


def test_a_wait_that_would_be_too_long_is_refused_at_once(generator):
    hasty = Limits(patience_seconds=1e-6)
    with (
        serving(generator, "7/0", request_limits=SLOW, limits=hasty) as service,
        closing(connected(service, COMPLETIONS, LONG)),
    ):
        eventually(lambda: counts(service).running == 1)
        assert error(ask(service.url, COMPLETIONS, SHORT), 429)["code"] == "queue_full"
        assert service.metrics.value(REJECTED, "patience") == 1


def test_an_engine_that_stops_ends_every_request_and_states_so(generator):
    with serving(generator, "7/0", request_limits=SLOW, limits=PATIENT) as service, ThreadPoolExecutor(2) as pool:
        whole = pool.submit(ask, service.url, COMPLETIONS, LONG)
        streamed = pool.submit(ask, service.url, COMPLETIONS, {**LONG, "stream": True})
        eventually(lambda: counts(service).running == 2 and counts(service).rows > 20)
        service.endpoint.engine.close()
        assert error(whole.result(), 503)["code"] == "engine_failed"
        last = read_events(streamed.result().text)[-1]
        assert last["error"]["code"] == "engine_failed"
        assert error(ask(service.url, COMPLETIONS, SHORT), 503)["code"] == "engine_failed"
        assert error(ask(service.url, "/readyz", method="GET"), 503)["code"] == "stopping"
        assert ask(service.url, "/healthz", method="GET").status_code == 200


def test_texts_that_were_let_in_are_ranked_though_the_engine_is_to_stop(generator):
    gate = Gate()
    with (
        serving(watched(generator, before=gate), "7/0", request_limits=SLOW, limits=PATIENT) as service,
        ThreadPoolExecutor(2) as pool,
    ):
        asked = pool.submit(ask, service.url, COMPLETIONS, {**SHORT, "best_of": 2})
        gate.wait()
        drained = pool.submit(service.endpoint.engine.drain, 60.0)
        eventually(lambda: service.endpoint.engine.closing)
        gate.let(10_000)
        assert asked.result().status_code == 200, asked.result().text
        assert drained.result() is True
        assert counts(service).finished == {"length": 2, "scored": 1}


def test_an_engine_that_is_to_stop_is_not_ready_and_states_why(generator):
    gate = Gate()
    with (
        serving(watched(generator, before=gate), "7/0", request_limits=SLOW, limits=PATIENT) as service,
        ThreadPoolExecutor(2) as pool,
    ):
        asked = pool.submit(ask, service.url, COMPLETIONS, SHORT)
        gate.wait()
        assert ask(service.url, "/readyz", method="GET").status_code == 200
        drained = pool.submit(service.endpoint.engine.drain, 60.0)
        eventually(lambda: service.endpoint.engine.closing)
        refused = ask(service.url, COMPLETIONS, SHORT)
        assert error(refused, 503)["code"] == "stopping"
        assert int(refused.headers["retry-after"]) >= 1
        unready = error(ask(service.url, "/readyz", method="GET"), 503)
        gate.let(10_000)
        assert asked.result().status_code == 200
        assert drained.result() is True
        assert unready == error(ask(service.url, "/readyz", method="GET"), 503)
        assert (unready["code"], unready["message"]) == ("stopping", "the server is stopping")


def test_a_request_whose_client_leaves_before_the_ranking_holds_up_no_stop(generator):
    gate = Gate()
    with serving(watched(generator, before=gate), "7/0", request_limits=SLOW, limits=PATIENT) as service:
        with closing(connected(service, COMPLETIONS, {**SHORT, "best_of": 2})):
            gate.wait()
        gate.let(10_000)
        assert service.endpoint.engine.drain(60.0)


def test_a_request_that_was_read_for_one_model_is_answered_by_it(fresh, generator):
    body = {"max_tokens": 300, "seed": 1, "stream": True, "edlm": {"steps": 12, "candidates": 1}}
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(stream, fresh.url, COMPLETIONS, body)
        eventually(lambda: counts(fresh).running == 1)
        fresh.endpoint.engine.swap(generator, "8/1")
        assert ask(fresh.url, COMPLETIONS, SHORT).json()["system_fingerprint"] == "8/1"
        assert {piece["system_fingerprint"] for piece in begun.result()} == {"7/0"}
    (model,) = ask(fresh.url, "/v1/models", method="GET").json()["data"]
    assert model["edlm"]["model_version"] == "8"
    assert ask(fresh.url, "/readyz", method="GET").json()["digest"] == "1"


def test_readiness_waits_for_the_warm_up(fresh):
    assert ask(fresh.url, "/readyz", method="GET").json()["status"] == "ready"
    fresh.endpoint.warm = False
    assert error(ask(fresh.url, "/readyz", method="GET"), 503)["code"] == "not_ready"


def test_many_come_and_go_and_nothing_is_left(fresh):
    threads = _threads()
    for seed in range(12):
        connection = connected(fresh, COMPLETIONS, {**LONG, "seed": seed, "stream": bool(seed % 2)})
        if seed % 3:
            time.sleep(0.01)
        connection.close()
    eventually(lambda: empty(fresh))
    stream(fresh.url, COMPLETIONS, SHORT)
    eventually(lambda: empty(fresh))
    assert _threads() <= threads


def _threads() -> set[str]:
    """The names of the threads but those of the event loop's pool, which reads prompts and may grow."""
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith(("asyncio_", "uvloop_"))}
