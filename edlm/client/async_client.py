"""Asynchronous client of the service: the methods of `Client`, awaited."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import httpx

from edlm.client.errors import Busy
from edlm.client.methods import ServiceMethods
from edlm.client.responses import BROKEN, StreamReader, refusal, tree_of, unreachable
from edlm.client.settings import NO_RETRIES, Patience, connection
from edlm.client.types import Event

P = ParamSpec("P")
Answer = TypeVar("Answer")


def _awaited(method: Callable[Concatenate[Any, P], Answer]) -> Callable[Concatenate[Any, P], Awaitable[Answer]]:
    """Return the very method, typed as it is on a client whose `_answer` is awaited."""
    return cast(Callable[Concatenate[Any, P], Awaitable[Answer]], method)


def _opened(method: Callable[Concatenate[Any, P], Any]) -> "Callable[Concatenate[Any, P], AsyncStream]":
    """Return the very method, typed as it is on a client whose streams are asynchronous."""
    return method


class AsyncClient:
    """Client of the service for asyncio: the methods and arguments of `Client`, each to be awaited.

    `stream` and `stream_infill` are not awaited: they return an AsyncStream.

    ```python
    async with edlm.AsyncClient("http://127.0.0.1:8000") as client:
        print(await client.complete("the "))
        async with client.stream("the ") as stream:
            async for event in stream:
                print(event)
    ```
    """

    complete = _awaited(ServiceMethods.complete)
    infill = _awaited(ServiceMethods.infill)
    score = _awaited(ServiceMethods.score)
    models = _awaited(ServiceMethods.models)
    tokenize = _awaited(ServiceMethods.tokenize)
    detokenize = _awaited(ServiceMethods.detokenize)
    stream = _opened(ServiceMethods.stream)
    stream_infill = _opened(ServiceMethods.stream_infill)
    _stream = ServiceMethods._stream

    def __init__(
        self, url: str, key: str | None = None, *, timeout_seconds: float = 300.0, patience: Patience = NO_RETRIES
    ) -> None:
        self._http = httpx.AsyncClient(**connection(url, key, timeout_seconds))
        self._patience = patience

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _answer(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Answer]) -> Answer:
        return read(tree_of(await self._send(path, body, stream=False)))

    def _streamed(self, path: str, body: Mapping[str, Any], seed: int, streams: str | None) -> "AsyncStream":
        return AsyncStream(lambda: self._send(path, body, stream=True), seed, streams)

    async def _send(self, path: str, body: Mapping[str, Any] | None, stream: bool) -> httpx.Response:
        """Return the response once the service accepts; retry while it is busy, as often as `patience` allows."""
        for retries_left in range(self._patience.times, -1, -1):
            try:
                return await self._try(path, body, stream)
            except Busy as busy:
                await asyncio.sleep(self._patience.wait(busy, retries_left))
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, path: str, body: Mapping[str, Any] | None, stream: bool) -> httpx.Response:
        request = self._http.build_request("GET" if body is None else "POST", path, json=body)
        try:
            response = await self._http.send(request, stream=stream)
            if response.is_success:
                return response
            text = await response.aread()
        except httpx.TransportError as error:
            raise unreachable(request, error) from None
        raise refusal(response, text)


class AsyncStream:
    """Asynchronous iterator over the events of a streamed text, the last of which is `Ended`.

    The request is sent when `async with` enters it, or with the first event. Closing it, as the end of the block does,
    cancels the work on the server. Errors are those of `Stream`.
    """

    def __init__(self, send: Callable[[], Awaitable[httpx.Response]], seed: int, streams: str | None = None) -> None:
        self.seed, self.streams = seed, streams
        self._send = send
        self._response: httpx.Response | None = None
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        self._response = await self._send()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the server stops generating."""
        await self._events.aclose()
        if self._response is not None:
            await self._response.aclose()

    async def _read(self) -> AsyncGenerator[Event, None]:
        if self._response is None:
            self._response = await self._send()
        reader = StreamReader(self.seed, self.streams)
        try:
            async for piece in self._response.aiter_bytes():
                for event in reader.feed(piece):
                    yield event
                if reader.ended:
                    return
            raise reader.lost("it ended early")
        except BROKEN as error:
            raise reader.lost(error) from None
        finally:
            await self._response.aclose()
