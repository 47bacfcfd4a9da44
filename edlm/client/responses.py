"""Responses of the service, read without waiting: by the client that waits and by the one that awaits."""

from collections.abc import Iterator
from typing import Any

import httpx

from edlm.client.errors import ServerFailed, ServiceError, StreamLost, Unreachable, error_of
from edlm.client.sse import Events
from edlm.client.types import Event, Reading

BROKEN = (httpx.TransportError, httpx.DecodingError, UnicodeDecodeError)
"""Errors of a connection that breaks off in a stream."""


def tree_of(response: httpx.Response) -> Any:
    """Return the JSON of a complete response. Raise ServerFailed if it has none."""
    try:
        return response.json()
    except ValueError:
        raise ServerFailed(f"the answer is no JSON: {response.text[:80]!r}", response.status_code) from None


def refusal(response: httpx.Response, body: bytes) -> ServiceError:
    """Return the error that the service reports."""
    return error_of(body.decode("utf-8", "replace"), response.status_code, response.headers.get("retry-after"))


def unreachable(request: httpx.Request, error: Exception) -> Unreachable:
    """Return the error of a request without a response."""
    return Unreachable(
        f"no answer from {request.url} ({_description(error)}); it may be sent again, with the same seed"
    )


class StreamReader:
    """Incremental reader of a stream: from the bytes of its response to its events, up to the last one."""

    def __init__(self, seed: int, streams: str | None) -> None:
        self.seed, self.streams = seed, streams
        self._parser, self._reading = Events(), Reading()

    @property
    def ended(self) -> bool:
        return self._reading.ended is not None

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that `piece` completes. Raise the error that one of them reports."""
        for data in self._parser.feed(piece):
            yield from self._reading.events(data)
            if self.ended:
                return

    def lost(self, cause: str | Exception) -> StreamLost:
        """Return the error of a stream that was cut before its last event."""
        return StreamLost(self.seed, cause if isinstance(cause, str) else _description(cause), self.streams)


def _description(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
