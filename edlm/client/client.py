"""Python client of the service, for complete and streamed responses."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Self, TypeVar

import httpx

from edlm.client.errors import Busy
from edlm.client.methods import ServiceMethods
from edlm.client.responses import BROKEN, StreamReader, refusal, tree_of, unreachable
from edlm.client.settings import NO_RETRIES, Patience, connection
from edlm.client.types import Event

Answer = TypeVar("Answer")


class Client(ServiceMethods["Stream"]):
    """Client of the service at `url` (with or without `/v1`); rejections raise the errors of `edlm.client.types`.

    `timeout_seconds` is the longest silence of the service. Proxies of the environment are not used. Raise ValueError
    for a URL without http:// or https://.
    """

    def __init__(
        self, url: str, key: str | None = None, *, timeout_seconds: float = 300.0, patience: Patience = NO_RETRIES
    ) -> None:
        self._http = httpx.Client(**connection(url, key, timeout_seconds))
        self._patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _answer(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Answer]) -> Answer:
        return read(tree_of(self._send(path, body, stream=False)))

    def _streamed(self, path: str, body: Mapping[str, Any], seed: int, streams: str | None) -> "Stream":
        return Stream(self._send(path, body, stream=True), seed, streams)

    def _send(self, path: str, body: Mapping[str, Any] | None, stream: bool) -> httpx.Response:
        """Return the response once the service accepts; retry while it is busy, as often as `patience` allows."""
        for retries_left in range(self._patience.times, -1, -1):
            try:
                return self._try(path, body, stream)
            except Busy as busy:
                time.sleep(self._patience.wait(busy, retries_left))
        raise AssertionError("the last attempt returns or raises")

    def _try(self, path: str, body: Mapping[str, Any] | None, stream: bool) -> httpx.Response:
        request = self._http.build_request("GET" if body is None else "POST", path, json=body)
        try:
            response = self._http.send(request, stream=stream)
            if response.is_success:
                return response
            text = response.read()
        except httpx.TransportError as error:
            raise unreachable(request, error) from None
        raise refusal(response, text)


class Stream:
    """Iterator over the events of a streamed text, the last of which is `Ended`.

    Closing it, as the end of a `with` does, cancels the work on the server. Iteration raises StreamLost if the stream
    is cut before its last event, and the error of the service if it reports one.
    """

    def __init__(self, response: httpx.Response, seed: int, streams: str | None = None) -> None:
        self.seed, self.streams = seed, streams
        self._response = response
        self._events = self._read()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the server stops generating."""
        self._events.close()
        self._response.close()

    def _read(self) -> Generator[Event, None, None]:
        reader = StreamReader(self.seed, self.streams)
        try:
            for piece in self._response.iter_bytes():
                yield from reader.feed(piece)
                if reader.ended:
                    return
            raise reader.lost("it ended early")
        except BROKEN as error:
            raise reader.lost(error) from None
        finally:
            self._response.close()
