"""Rejections by Ray's own proxy, sent as plain text or not at all, converted to OpenAI's format."""

import random

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from cluster.http.errors import APIError

RAYS_PATHS = "/-/"  # Ray's probes, which are not routes of an application
RAYS_HEADERS = frozenset({"content-type", "retry-after", "x-request-id"})  # an application's response has others, too
BACK_SECONDS = 5  # time within which another replica takes what one could not


class Translating:
    """`send` of one request that converts rejections by Ray's proxy to OpenAI's format and keeps other messages."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._begun = False
        self._refused: APIError | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            self._refused = None if self._scope["path"].startswith(RAYS_PATHS) else refusal(message)
        if self._refused is None:
            await self._send(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._refused.response(self._scope, self._receive, self._send)

    async def end(self) -> None:
        """Send an error if there was no response: Ray sends none if the replica is killed before the first byte."""
        if not self._begun:
            self._begun = True
            await _ended().response(self._scope, self._receive, self._send)


def refusal(start: Message) -> APIError | None:
    """Return the error to send instead of a response with this start; None if it is no rejection by Ray itself."""
    headers = Headers(raw=[(bytes(name), bytes(value)) for name, value in start.get("headers", ())])
    status = start["status"]
    from_ray = headers.get("content-type", "").startswith("text/plain") and frozenset(headers) <= RAYS_HEADERS
    if status < 400 or not from_ray:
        return None
    if status == 404:
        return APIError(404, "no application is served at this path", code="not_found")
    if status == 408:
        return APIError(504, "the deadline passed; ask for less", code="deadline_exceeded")
    if status == 429:
        wait = spread(headers.get("retry-after"))
        return APIError(429, f"too many requests wait for a replica; try again in {wait} s", None, "queue_full", wait)
    if status == 503:
        wait = spread(headers.get("retry-after"))
        return APIError(503, f"no replica can take requests; try again in {wait} s", None, "not_ready", wait)
    return _ended() if status == 500 else APIError(status, "the server's proxy rejected this request")


def spread(retry_after: str | None) -> int:
    """Draw whole seconds up to Ray's value, so that clients rejected together do not retry together."""
    return random.randint(
        1, max(1, int(retry_after) if retry_after is not None and retry_after.isdigit() else BACK_SECONDS)
    )


def _ended() -> APIError:
    wait = spread(None)
    message = f"no replica finished the request; try again in {wait} s: the same seed gives the same text"
    return APIError(503, message, None, "engine_failed", wait)
