"""Refusals of Ray's own proxy, which come as plain text or not at all, in OpenAI's form."""

import random

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from cluster.http.errors import APIError

RAYS_PATHS = "/-/"  # its probes, which are no routes of an application
RAYS_HEADERS = frozenset({"content-type", "retry-after", "x-request-id"})  # an application's answer has others, too
BACK_SECONDS = 5  # within which another replica takes what one could not


class Translating:
    """`send` for one request: a refusal of Ray's proxy goes out in OpenAI's form; all else goes out as it comes."""

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
        """Afterwards the client has an answer: where its replica is killed before the first byte, Ray gives none."""
        if not self._begun:
            self._begun = True
            await _ended().response(self._scope, self._receive, self._send)


def refusal(start: Message) -> APIError | None:
    """What to say in the place of an answer that begins like this; None where it is no refusal of Ray's own."""
    headers = Headers(raw=[(bytes(name), bytes(value)) for name, value in start.get("headers", ())])
    status = start["status"]
    own = headers.get("content-type", "").startswith("text/plain") and frozenset(headers) <= RAYS_HEADERS
    if status < 400 or not own:
        return None
    if status == 404:
        return APIError(404, "no application of this server answers at this path", code="not_found")
    if status == 408:
        return APIError(504, "not done in time; ask for less", code="deadline_exceeded")
    if status == 429:
        wait = spread(headers.get("retry-after"))
        return APIError(429, f"too many requests wait for a replica; try again in {wait} s", None, "queue_full", wait)
    if status == 503:
        wait = spread(headers.get("retry-after"))
        return APIError(503, f"no replica can take requests; try again in {wait} s", None, "not_ready", wait)
    return _ended() if status == 500 else APIError(status, "the server's proxy does not take this request")


def spread(told: str | None) -> int:
    """Whole seconds, drawn from those up to what Ray says, so that clients refused together do not return together."""
    return random.randint(1, max(1, int(told) if told is not None and told.isdigit() else BACK_SECONDS))


def _ended() -> APIError:
    wait = spread(None)
    message = f"no replica finished this; ask again in {wait} s: the same seed gives the same text"
    return APIError(503, message, None, "engine_failed", wait)
