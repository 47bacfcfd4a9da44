"""Both clients against a real server that speaks the service's protocol as it was agreed on."""

import asyncio
import inspect
import socket
import threading
from dataclasses import replace

import pytest

from edlm.client import AsyncClient
from edlm.client.client import Client
from edlm.client.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    NotAllowed,
    ServerFailed,
    ServiceError,
    StreamLost,
    Unreachable,
)
from edlm.client.methods import ServiceMethods
from edlm.client.settings import Patience, Settings, base_url
from edlm.client.types import Choice, Ended, Infilled, State, Unmasked


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


def test_a_connection_that_dies_in_a_stream_is_a_lost_stream(client_class):
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
        with client_class(f"http://127.0.0.1:{listening.getsockname()[1]}") as client, pytest.raises(StreamLost):
            list(client.stream("x"))
        thread.join(20)


def test_a_stream_of_bytes_that_are_no_text_is_a_lost_stream(client_class):
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
        with client_class(url) as client, pytest.raises(StreamLost, match="UnicodeDecodeError"):
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


def test_a_busy_service_is_asked_again_as_often_as_patience_allows(client_class, url, protocol):
    protocol.asked.clear()
    protocol.busy = 2
    with client_class(url, patience=Patience(times=2)) as patient:
        assert patient.complete("x", seed=3).details.seed == 3
    assert [asked["seed"] for asked in protocol.asked] == [3, 3, 3]
    protocol.busy = 2
    with client_class(url, patience=Patience(times=1)) as impatient, pytest.raises(Busy) as busy:
        impatient.complete("x")
    assert (busy.value.retry_after, protocol.busy) == (0, 0)


@pytest.mark.parametrize("wrong", [{"times": -1}, {"seconds": -1.0}])
def test_patience_is_not_negative(wrong):
    with pytest.raises(ValueError, match="neither may be negative"):
        Patience(**wrong)


def test_a_wait_that_is_too_long_is_not_begun(client_class, url):
    with client_class(url, patience=Patience(times=9, seconds=0.5)) as client, pytest.raises(Busy, match="too many"):
        client.complete("proxy")  # names no time to wait, which stands for one second


def test_where_nothing_listens_is_reported(client_class):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with client_class(url) as client, pytest.raises(Unreachable, match=f"no answer from {url}/v1/models"):
        client.models()


# ---------------------------------------------------------------- what both clients are, and what they return


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_url_is_taken_with_or_without_v1(client_class, url, suffix):
    with client_class(url + suffix) as client:
        assert client.tokenize("ab").count == 2


@pytest.mark.parametrize(
    ("given", "base"),
    [("HTTPS://host/v1", "HTTPS://host"), ("http://host/edlm/v1/", "http://host/edlm"), ("http://v1", "http://v1")],
)
def test_a_path_before_v1_is_kept(given, base):
    assert base_url(given) == base


@pytest.mark.parametrize("wrong", ["127.0.0.1:8000", "localhost:8000/v1", "ftp://host", "http://", "", "//host"])
def test_a_url_without_its_scheme_is_refused_with_what_to_give(client_class, wrong):
    with pytest.raises(ValueError, match="give it with http:// or https://, as 'http://"):
        client_class(wrong)


def test_an_answer_prints_as_its_text_and_is_described_in_a_line_for_each_text(client):
    done = client.complete("x", seed=5)
    assert str(done) == done.text == str(done.choices[0]) == "ab"
    assert repr(done) == "Completion(steps=4, candidates=2, energy='step', seed=5, 0.10 s)\n  [0] 'ab'"
    changed = replace(done, details=replace(done.details, distribution="another distribution", ignored=("a", "b")))
    assert ", seed=5, another distribution, ignored: a, b, 0.10 s)" in repr(changed)
    two = replace(done, choices=(Choice(0, "ab"), Choice(1, "c")))
    assert str(two) == "[0] ab\n[1] c"
    with pytest.raises(ValueError, match="this holds 2 texts"):
        _ = two.text
    filled = client.infill(["a", 1, "c"])
    assert (str(filled), str(filled.choices[0])) == ("abc", "abc")
    assert repr(filled).startswith("Infill(steps=4, ")


def test_a_score_prints_its_estimates(client):
    lines = str(client.score("a")).splitlines()
    assert lines[0].startswith("Score of 'a")
    assert [line.split()[0] for line in lines[1:]] == ["nelbo", "bound", "energy"]
    assert lines[3].startswith("  energy step 2.00 ± ")


NAMES = [name for name in vars(ServiceMethods) if not name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_the_asynchronous_client_has_the_same_methods_with_the_same_arguments(name):
    ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert ours.__doc__ == theirs.__doc__


def test_an_asynchronous_stream_may_be_read_without_being_entered(url):
    async def kinds() -> list[type]:
        async with AsyncClient(url) as client:
            return [type(event) async for event in client.stream("x", denoising=True)]

    assert asyncio.run(kinds()) == [State, Choice, Choice, Ended]


def test_asynchronous_requests_wait_beside_one_another(url, protocol):
    async def seeds() -> list[int]:
        async with AsyncClient(url, patience=Patience(times=1)) as client:
            return [
                done.details.seed for done in await asyncio.gather(*(client.complete("x", seed=i) for i in range(5)))
            ]

    protocol.busy = 1  # one of them is asked again
    assert asyncio.run(seeds()) == list(range(5))


def test_a_cancelled_task_cancels_on_the_server(url, protocol):
    protocol.cancelled.clear()

    async def begun_and_cancelled() -> None:
        began = asyncio.Event()

        async def read() -> None:
            async with client.stream("long") as stream:
                async for _ in stream:
                    began.set()

        async with AsyncClient(url) as client:
            reading = asyncio.create_task(read())
            await began.wait()
            reading.cancel()
            await asyncio.wait([reading])

    asyncio.run(begun_and_cancelled())
    assert protocol.cancelled.wait(20)
