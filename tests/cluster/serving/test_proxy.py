"""What stands before Ray's proxy: its refusals go out in OpenAI's form, and all else as it comes.

`tests/cluster/endpoint/test_faults.py` has those of a real proxy; here are those that it does not give when a test
wants them, made by the same function of Ray.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from cluster.http.local import listening
from cluster.serving.proxy import Intake

App = Callable[[Scope, Receive, Send], Awaitable[None]]


def rays(status: int, text: str, *headers: tuple[bytes, bytes]) -> App:
    """An app that says what Ray's proxy says."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in convert_object_to_asgi_messages(text, status, list(headers)):
            await send(message)

    return app


def asked(app: App, path: str = "/v1/completions") -> httpx.Response:
    with listening(Intake(app)) as url:
        return httpx.get(f"{url}{path}", trust_env=False)


async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """What Ray's proxy does where a replica is killed before its first byte."""


@pytest.mark.parametrize(
    ("app", "status", "code", "waits"),
    [
        (rays(429, "Request dropped", (b"retry-after", b"7")), 429, "queue_full", range(1, 8)),
        (rays(503, "Request dropped due to backpressure"), 503, "not_ready", range(1, 6)),
        (rays(408, "Request 1 timed out after 130s."), 504, "deadline_exceeded", None),
        (rays(404, "Path '/x' not found."), 404, "not_found", None),
        (rays(500, "Internal Server Error"), 503, "engine_failed", range(1, 6)),
        (silent, 503, "engine_failed", range(1, 6)),
    ],
)
def test_a_refusal_of_rays_proxy_is_json_with_a_code(app, status, code, waits):
    answer = asked(app)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    reported = answer.headers.get("retry-after")
    assert reported is None if waits is None else int(reported) in waits
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_clients_that_are_rejected_together_have_different_retry_after():
    with listening(Intake(rays(429, "", (b"retry-after", b"10")))) as url:
        waits = {httpx.get(url, trust_env=False).headers["retry-after"] for _ in range(20)}
    assert len(waits) > 1


@pytest.mark.parametrize(
    "answer", [PlainTextResponse("not here", 404), JSONResponse({"detail": "busy"}, 503), PlainTextResponse("fine")]
)
def test_responses_of_an_application_are_passed_through(answer):
    reported = asked(answer)
    assert (reported.status_code, reported.content) == (answer.status_code, answer.body)
    assert reported.headers["content-type"] == answer.headers["content-type"]


def test_rays_own_probes_keep_their_words():
    reported = asked(rays(503, "This node is being drained."), "/-/healthz")
    assert (reported.status_code, reported.text) == (503, "This node is being drained.")


def test_a_stream_goes_out_piece_by_piece():
    """The second piece is only made once the first has arrived."""
    arrived: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        for _ in range(500):
            if arrived:
                break
            await asyncio.sleep(0.01)
        yield b"seen" if arrived else b"held back"

    with listening(Intake(StreamingResponse(pieces()))) as url, httpx.stream("GET", url, trust_env=False) as answer:
        for piece in answer.iter_raw():
            arrived.append(piece)
    assert arrived == [b"first", b"seen"]
