"""What the endpoint does under a burst, and when its processes die."""

import asyncio
import contextlib
import os
import signal
import threading

import httpx
import pytest

from edlm.client.errors import StreamLost
from edlm.client.settings import Settings
from tests.cluster.endpoint.stage import SECONDS, until
from workflows.benchmarking.arrivals import plan
from workflows.benchmarking.load import burst

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
LONG = {"max_tokens": 4096, "seed": 1}
STEPS = Settings(steps=12, candidates=1)


def test_of_a_burst_every_accepted_request_ends_in_time_and_every_other_is_refused(stage):
    """R4: ten times what both replicas take on, all at once."""
    capacity = 2 * (stage.settings.slots + stage.settings.waiting)
    requests = plan(10 * capacity, None, steps=(4, 12), candidates=(1,), seed=1)
    outcomes = burst(stage.url, requests, deadline=20.0)
    endings = {ending: [end for end in outcomes if end.ending == ending] for ending in {o.ending for o in outcomes}}
    assert set(endings) == {"done", "busy"}, [
        (end.ending, end.error_message) for end in outcomes if end.ending not in endings
    ]
    assert all(end.seconds <= 20.0 for end in endings["done"])
    assert all(end.retry_after is not None and end.retry_after >= 1 for end in endings["busy"])
    assert len(endings["done"]) >= 2 * stage.settings.slots
    after = burst(stage.url, plan(2, None, steps=(4,), candidates=(1,), seed=2), deadline=20.0)
    assert [end.ending for end in after] == ["done", "done"]


def test_rejections_of_a_burst_have_openais_form_and_different_retry_after(stage):
    """Those of Ray's proxy, whose queue a burst fills, too."""
    answers = asyncio.run(_at_once(f"{stage.url}/v1/completions", 300))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    errors = [answer.json()["error"] for answer in refused]
    assert {(error["code"], error["type"]) for error in errors} == {("queue_full", "rate_limit_error")}
    assert any("wait for a replica" in error["message"] for error in errors), "Ray's proxy refused nothing"
    waits = {int(answer.headers["retry-after"]) for answer in refused}
    assert min(waits) >= 1
    assert len(waits) > 1
    assert all(len(answer.headers.get_list("x-request-id")) == 1 for answer in refused)


async def _at_once(url: str, count: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=SECONDS, trust_env=False) as client:
        body = {"prompt": "", "max_tokens": 60, "edlm": {"steps": 12, "candidates": 1}}
        return await asyncio.gather(*(client.post(url, json=body | {"seed": i}) for i in range(count)))


@pytest.mark.chaos
def test_a_stream_whose_replica_is_killed_has_no_end_and_service_comes_back(stage):
    """R13: mid-response the client sees a stream without [DONE]; before it, an error; and it may ask again."""
    alone = stage.ask(seed=5).json()["choices"][0]["text"]
    killed, reported = stage.pids(), []

    def unary() -> None:
        try:
            answer = stage.ask(max_tokens=600)
            reported.append((answer.status_code, answer.json().get("error", {}).get("code")))
        except httpx.TransportError:
            reported.append(None)  # the connection was dropped

    waiting = threading.Thread(target=unary)
    waiting.start()
    with stage.client() as client, client.stream("", settings=STEPS, **LONG) as stream:
        next(iter(stream))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(StreamLost) as lost:
            list(stream)
    waiting.join()
    assert lost.value.seed == LONG["seed"]
    # 200: it was routed anew, for no replica had taken it.
    assert reported in ([(503, "engine_failed")], [None], [(200, None)])
    until(lambda: len(stage.pids() - killed) == 2)
    until(lambda: answered(stage, seed=5) == alone)


def answered(stage, **fields) -> str | None:
    with contextlib.suppress(httpx.TransportError):
        response = stage.ask(**fields)
        return response.json()["choices"][0]["text"] if response.status_code == 200 else None
    return None


def test_control_headers_of_clients_do_nothing_and_large_bodies_do_not_come_in(stage):
    """S13, S15, on Serve's own proxy."""
    hostile = {"x-request-timeout-seconds": "0.001", "serve_multiplexed_model_id": "x", "x-request-id": "a" * 2000}
    body = {"prompt": "", "max_tokens": 200}
    url = f"{stage.url}/v1/completions"
    answer = httpx.post(url, json=body, headers=hostile, timeout=SECONDS, trust_env=False)
    assert answer.status_code == 200
    assert len(answer.headers.get_list("x-request-id")) == 1
    large = httpx.post(url, content=b" " * 2**22, headers={"content-type": "application/json"}, trust_env=False)
    assert large.status_code == 413
    assert large.json()["error"]["code"] == "body_too_large"
