"""The client against a real server that speaks the service's protocol as it was agreed on."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from cluster.http.local import listening
from edlm.client.client import Client, Patience, Settings
from edlm.client.sse import Events
from edlm.client.types import (
    Busy,
    Choice,
    DeadlineExceeded,
    Ended,
    Infilled,
    InvalidRequest,
    NotAllowed,
    ServerFailed,
    ServiceError,
    State,
    StreamLost,
    Unmasked,
    Unreachable,
    error_of,
)

DETAILS = {
    "seed": 7, "steps": 4, "candidates": 2, "window": [0.0, 1.0], "energy_temperature": 1.0, "energy": "step",
    "ess": 1.5, "denoiser_calls": 4, "energy_calls": 8, "seconds": 0.1, "model_version": "1", "digest": "d",
    "something": "that a later server adds",
}  # fmt: skip
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
STATE = {
    "index": 0, "step": 3, "steps": 4, "t": 0.75, "masked": 1, "positions": 2, "unmasked": [[0, 5, "a\u2028", 3]],
    "ess": None, "candidates": 2, "energies": [[1.0, None]], "picked": [0], "scored_step": 4, "block": None,
    "denoiser_calls": 1, "energy_calls": 2,
}  # fmt: skip
LONG = 10_000  # events of a text that the client does not read to its end


@dataclass
class Protocol:
    """A server that answers as its prompt says, and remembers what it was asked."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    busy: int = 0
    """How often it is still going to be busy."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/infill", self.infill, methods=["POST"]),
                Route("/v1/score", self.score, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/detokenize", self.detokenize, methods=["POST"]),
            ]
        )

    async def complete(self, request: Request):
        body = await request.json()
        self.asked.append(body | {"key": request.headers.get("authorization")})
        if self.busy:
            self.busy -= 1
            return refusal(429, "overloaded", None, {"retry-after": "0"})
        match body["prompt"]:
            case "wrong":
                return refusal(400, "work_limit_exceeded", "edlm.steps")
            case "key":
                return refusal(401, "invalid_api_key", None)
            case "late":
                return refusal(504, "deadline_exceeded", None)
            case "proxy":
                return PlainTextResponse("too many", 429)
            case "page":
                return PlainTextResponse("<html>")
            case "other":
                return JSONResponse({"id": 1})
        if body.get("stream"):
            return StreamingResponse(self.events(body["prompt"]), media_type="text/event-stream")
        choice = {"index": 0, "text": "ab", "finish_reason": "length", "logprobs": None}
        return JSONResponse(
            {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": USAGE}
            | {"edlm": DETAILS | {"seed": body["seed"]}}
        )

    async def events(self, prompt: str):
        def text(piece: str, reason: str | None = None) -> str:
            choice = {"index": 0, "text": piece, "finish_reason": reason, "logprobs": None}
            return event({"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]})

        yield event({"id": "c", "choices": [], "edlm": {"state": STATE}})
        yield text("a\u2028")
        if prompt == "cut":
            return
        if prompt == "fails":
            yield event(
                {"error": {"message": "late", "type": "server_error", "param": None, "code": "deadline_exceeded"}}
            )
            return
        try:
            for _ in range(LONG if prompt == "long" else 0):
                yield text("a")
                await asyncio.sleep(0.005)
        finally:
            self.cancelled.set()
        yield text("b", "stop")
        yield event({"id": "c", "choices": [], "usage": USAGE, "edlm": {"details": DETAILS}})
        yield "data: [DONE]\n\n"

    async def infill(self, request: Request):
        body = await request.json()
        self.asked.append(body)
        choice = {"index": 0, "text": "abc", "tokens": [1, 2, 3], "finish_reason": "length"}
        if body.get("stream"):
            lines = [
                event({"object": "infill.chunk", "choices": [], "edlm": {"state": STATE}}),
                event({"object": "infill.chunk", "choices": [choice]}),
                "data: [DONE]\n\n",
            ]
            return StreamingResponse(iter(lines), media_type="text/event-stream")
        return JSONResponse({"id": "i", "model": "m", "choices": [choice], "usage": USAGE, "edlm": DETAILS})

    async def score(self, request: Request):
        self.asked.append(await request.json())
        nats = {"nats": 2.0, "standard_error": 0.5}
        answer = {"model": "m", "text": "a", "tokens": 1, "nelbo": nats, "bound": nats, "energies": {"step": nats}}
        return JSONResponse(answer | {"edlm": DETAILS})

    async def models(self, _: Request):
        facts = {
            "model_version": "1",
            "digest": "d",
            "length": 12,
            "energies": ["step"],
            "energy": "step",
            "sampler": {},
        }
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "edlm": facts}]})

    async def tokenize(self, request: Request):
        text = (await request.json())["text"]
        return JSONResponse({"tokens": list(range(len(text))), "pieces": list(text), "count": len(text)})

    async def detokenize(self, request: Request):
        return JSONResponse({"text": "".join(chr(97 + token) for token in (await request.json())["tokens"])})


def event(chunk: dict) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def refusal(status: int, code: str, param: str | None, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"message": f"no: {code}", "type": "invalid_request_error", "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol()


@pytest.fixture(scope="module")
def url(protocol) -> Iterator[str]:
    with listening(protocol.app) as at:
        yield at


@pytest.fixture
def client(url, protocol) -> Iterator[Client]:
    protocol.asked.clear()
    protocol.cancelled.clear()
    with Client(url, "secret", timeout_seconds=20) as opened:
        yield opened


def test_every_answer_has_its_type(client, protocol):
    done = client.complete(
        "x", max_tokens=2, seed=5, settings=Settings(steps=4, window=(0.5, 1.0), returned=("token_ids",)), n=1
    )
    assert (done.choices, done.details.seed, done.details.energy) == ((Choice(0, "ab", "length"),), 5, "step")
    assert protocol.asked[0]["edlm"] == {"steps": 4, "window": [0.5, 1.0], "return": ["token_ids"]}
    assert (protocol.asked[0]["n"], protocol.asked[0]["key"]) == (1, "Bearer secret")
    assert client.infill(["a", 1, "c"]).choices == (Infilled(0, "abc", (1, 2, 3), "length"),)
    assert client.score("a", draws=4).energies["step"].nats == 2.0
    assert (protocol.asked[-1]["draws"], "tokens" in protocol.asked[-1]) == (4, False)
    assert client.models()[0].facts.length == 12
    assert client.tokenize("ab").pieces == ("a", "b")
    assert client.detokenize([0, 1]) == "ab"


def test_a_request_without_a_seed_is_given_one_that_can_be_sent_again(client, protocol):
    seeds = {client.complete("x").details.seed for _ in range(3)}
    assert seeds == {asked["seed"] for asked in protocol.asked}
    assert len(seeds) == 3


def test_texts_without_a_seed_are_independent_and_with_one_as_the_service_has_it(client, protocol):
    client.complete("x", n=2)
    client.infill(["a", 1])
    list(client.stream("x"))
    list(client.stream_infill(["a", 1]))
    assert [asked["edlm"] for asked in protocol.asked] == [{"streams": "independent"}] * 4
    client.complete("x", seed=1)
    client.complete("x", settings=Settings(streams="shared"))
    assert [asked["edlm"] for asked in protocol.asked[4:]] == [{}, {"streams": "shared"}]


def test_settings_and_fields_are_sent_together(client, protocol):
    window = Settings(window=(0.5, 1.0), candidates=2)
    client.complete("x", seed=1, edlm={"steps": 4})
    client.complete("x", seed=1, settings=window, edlm={"steps": 4, "window": [0.5, 1.0], "energy": None})
    client.infill(["a", 1], seed=1, edlm={"steps": 4})
    client.score("a", edlm={"steps": 4})
    list(client.stream("x", seed=1, edlm={"steps": 4}))
    list(client.stream_infill(["a", 1], seed=1, edlm={"steps": 4}))
    merged = {"steps": 4, "window": [0.5, 1.0], "candidates": 2}
    assert [asked["edlm"] for asked in protocol.asked] == [{"steps": 4}, merged, *[{"steps": 4}] * 4]


def test_options_of_a_stream_are_sent_together(client, protocol):
    list(client.stream("x", denoising=True, stream=True, stream_options={"include_usage": False, "other": 1}))
    list(client.stream("x", stream_options={"denoising": True}))
    list(client.stream_infill(["a", 1], stream_options={"denoising": False}))
    assert [asked["stream_options"] for asked in protocol.asked] == [
        {"include_usage": False, "denoising": True, "other": 1},
        {"include_usage": True, "denoising": True},
        {"include_usage": True, "denoising": False},
    ]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda client: client.complete("x", settings=Settings(steps=4), edlm={"steps": 8}), "edlm.steps is 8, and as"),
        (lambda client: client.score("x", settings=Settings(steps=4), edlm={"steps": 8}), "edlm.steps is 8, and as"),
        (lambda client: client.complete("x", edlm=4), "edlm is 4; it is an object"),
        (lambda client: client.stream("x", denoising=True, stream_options={"denoising": False}), "options.denoising"),
        (lambda client: client.stream("x", stream=False), "call complete or infill"),
        (lambda client: client.complete("x", stream=True), "call stream or stream_infill"),
        (lambda client: client.infill(["x", 1], stream=True), "call stream or stream_infill"),
    ],
)
def test_what_contradicts_itself_is_not_sent(client, protocol, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(client)
    assert not protocol.asked


def test_a_stream_gives_states_and_text_in_order_and_states_that_it_ended(client, protocol):
    with client.stream("x", seed=7, denoising=True) as stream:
        state, first, last, ended = list(stream)
    assert isinstance(state, State)
    assert state.unmasked == (Unmasked(position=0, token=5, text="a\u2028", step=3),)
    assert (state.energies, state.picked, state.t) == (((1.0, None),), (0,), 0.75)
    assert (first, last) == (Choice(0, "a\u2028"), Choice(0, "b", "stop"))
    assert isinstance(ended, Ended)
    assert (ended.details.steps, ended.usage.total_tokens) == (4, 3)
    assert protocol.asked[0]["stream_options"] == {"include_usage": True, "denoising": True}


def test_an_infill_streams_its_states_and_its_tokens(client):
    with client.stream_infill(tokens=[1, None, 3]) as stream:
        state, filled, ended = list(stream)
    assert (type(state), filled, ended) == (State, Infilled(0, "abc", (1, 2, 3), "length"), Ended(None, None))


def test_a_stream_that_is_cut_states_that_the_same_seed_may_be_sent_again(client):
    stream = client.stream("cut", seed=11)
    with pytest.raises(StreamLost, match="send the request again with the same seed, 11: it gives") as lost:
        list(stream)
    assert (lost.value.seed, lost.value.streams) == (11, None)
    with pytest.raises(StreamLost, match="and streams 'independent': it gives"):
        list(client.stream("cut"))


def test_a_connection_that_dies_in_a_stream_is_a_lost_stream():
    def answer_a_little(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.recv(65536)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b"9\r\ndata: {}\n\r\n")
        connection.close()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=answer_a_little, args=[listening])
        thread.start()
        with Client(f"http://127.0.0.1:{listening.getsockname()[1]}") as client, pytest.raises(StreamLost):
            list(client.stream("x"))
        thread.join(20)


def test_a_stream_of_bytes_that_are_no_text_is_a_lost_stream():
    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.recv(65536)
        body = b"data: \xff\n\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        connection.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        connection.close()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=answer, args=[listening])
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with Client(url) as client, pytest.raises(StreamLost, match="UnicodeDecodeError"):
            list(client.stream("x"))
        thread.join(20)


def test_an_error_within_a_stream_is_raised_as_what_it_is(client):
    stream = client.stream("fails")
    with pytest.raises(DeadlineExceeded, match="late") as error:
        list(stream)
    assert (error.value.status, error.value.code) == (None, "deadline_exceeded")


def test_closing_a_stream_cancels_on_the_server(client, protocol):
    with client.stream("long") as stream:
        assert isinstance(next(stream), State)
        assert not protocol.cancelled.is_set()
    assert protocol.cancelled.wait(20)
    assert list(stream) == []


@pytest.mark.parametrize(
    ("prompt", "kind", "status", "code", "param"),
    [
        ("wrong", InvalidRequest, 400, "work_limit_exceeded", "edlm.steps"),
        ("key", NotAllowed, 401, "invalid_api_key", None),
        ("late", DeadlineExceeded, 504, "deadline_exceeded", None),
        ("proxy", Busy, 429, None, None),
        ("page", ServerFailed, 200, None, None),
        ("other", ServerFailed, None, None, None),
    ],
)
def test_a_refusal_has_its_type_status_code_and_field(client, prompt, kind, status, code, param):
    with pytest.raises(ServiceError) as error:
        client.complete(prompt)
    assert (type(error.value), error.value.status, error.value.code, error.value.param) == (kind, status, code, param)


def test_a_refusal_of_a_stream_is_raised_before_its_first_event(client):
    with pytest.raises(InvalidRequest):
        client.stream("wrong")


def test_a_busy_service_is_asked_again_as_often_as_patience_allows(url, protocol):
    protocol.asked.clear()
    protocol.busy = 2
    with Client(url, patience=Patience(times=2)) as patient:
        assert patient.complete("x", seed=3).details.seed == 3
    assert [asked["seed"] for asked in protocol.asked] == [3, 3, 3]
    protocol.busy = 2
    with Client(url, patience=Patience(times=1)) as impatient, pytest.raises(Busy) as busy:
        impatient.complete("x")
    assert (busy.value.retry_after, protocol.busy) == (0, 0)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("soon", None), (None, None)])
def test_the_time_to_wait_is_a_number_of_seconds(header, seconds):
    assert error_of("busy", 429, header).retry_after == seconds


def test_the_time_to_wait_may_be_a_date():
    later = error_of("busy", 429, format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert later.retry_after == pytest.approx(90, abs=5)
    assert error_of("busy", 429, "Wed, 21 Oct 2015 07:28:00 GMT").retry_after == 0


@pytest.mark.parametrize("wrong", [{"times": -1}, {"seconds": -1.0}])
def test_patience_is_not_negative(wrong):
    with pytest.raises(ValueError, match="neither may be negative"):
        Patience(**wrong)


def test_a_wait_that_is_too_long_is_not_begun(url):
    with Client(url, patience=Patience(times=9, seconds=0.5)) as client, pytest.raises(Busy, match="too many"):
        client.complete("proxy")  # names no time to wait, which stands for one second


def test_where_nothing_listens_is_reported():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with Client(url) as client, pytest.raises(Unreachable, match=f"no answer from {url}/v1/models"):
        client.models()


@given(
    texts=st.lists(
        st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1), min_size=1
    ),
    cuts=st.data(),
)
@settings(deadline=None)
def test_events_do_not_depend_on_where_the_pieces_were_cut(texts, cuts):
    whole = "".join(f": a comment\r\nid: 1\ndata: {text}\r\n\r\n" for text in texts).encode()
    events, actual = Events(), []
    while whole:
        size = cuts.draw(st.integers(1, len(whole)))
        actual += events.feed(whole[:size])
        whole = whole[size:]
    assert actual == texts
