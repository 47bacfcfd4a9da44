"""A silent stream sends comments until its next chunk, and ends the generation behind it in every case."""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from cluster.config import Serving
from cluster.http.errors import APIError
from cluster.http.limits.settings import request_limits_of
from cluster.http.request_context import RequestContext
from cluster.http.streaming.sse_events import COMMENT, DONE, EventStream

SCOPE = {"type": "http"}


class Connection:
    """A client's side: what it was sent, and an event for its second comment."""

    def __init__(self) -> None:
        self.bodies, self.comments, self.silent = [], 0, asyncio.Event()

    async def send(self, message) -> None:
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.comments += message["body"] == COMMENT
            if self.comments == 2:
                self.silent.set()


async def receive():
    raise AssertionError("a stream does not read")


def response(pieces: AsyncGenerator[bytes, None], keep_alive_seconds: float = 0.001) -> EventStream:
    return EventStream(pieces, time.monotonic() + 60, RequestContext("1"), keep_alive_seconds)


def test_comments_fill_a_silence_and_change_no_chunk():
    async def run() -> list[bytes]:
        connection = Connection()

        async def pieces():
            yield b"one"
            await connection.silent.wait()
            yield b"two"
            yield DONE

        await response(pieces())(SCOPE, receive, connection.send)
        return connection.bodies

    bodies = asyncio.run(run())
    assert bodies[0] == b"one"
    assert bodies[1:3] == [COMMENT, COMMENT]
    assert [body for body in bodies if body != COMMENT] == [b"one", b"two", DONE, b""]


def test_a_stream_that_is_not_silent_has_no_comment():
    async def run() -> list[bytes]:
        connection = Connection()

        async def pieces():
            for _ in range(3):
                yield b"one"

        await response(pieces(), keep_alive_seconds=60)(SCOPE, receive, connection.send)
        return connection.bodies

    assert asyncio.run(run()) == [b"one"] * 3 + [b""]


def test_an_error_after_a_silence_is_an_event_and_the_stream_is_not_complete():
    async def run() -> list[bytes]:
        connection = Connection()

        async def pieces():
            yield b"one"
            await connection.silent.wait()
            raise APIError(500, "the model broke", code="numerical_error")

        await response(pieces())(SCOPE, receive, connection.send)
        return connection.bodies

    bodies = asyncio.run(run())
    assert b'"code":"numerical_error"' in bodies[-2]
    assert DONE not in bodies


def test_a_client_that_leaves_in_a_silence_ends_the_generation():
    async def run() -> bool:
        connection, ended = Connection(), False

        async def pieces():
            nonlocal ended
            try:
                yield b"one"
                await asyncio.Event().wait()
            finally:
                ended = True

        task = asyncio.create_task(response(pieces())(SCOPE, receive, connection.send))
        await connection.silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended

    assert asyncio.run(run())


def test_the_silence_is_a_setting():
    assert request_limits_of(Serving(keep_alive_seconds=3)).keep_alive_seconds == 3
    assert request_limits_of(Serving()).keep_alive_seconds == 15
