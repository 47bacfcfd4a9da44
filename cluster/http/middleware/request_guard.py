"""Request checks before the routes: Host header, API key, sizes of headers and body."""

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.http.errors import APIError
from cluster.http.middleware.api_keys import APIKeys, BadKeyFile
from cluster.http.request_context import request_context

MAX_BODY_BYTES = 2**20
MAX_HEADER_BYTES = 2**14
BODY_SECONDS = 30.0  # timeout against clients that send their body byte by byte
OPEN = frozenset({"/", "/healthz", "/readyz", "/health", "/ping"})  # the page asks for a key; probes have none
ANY = "*"
log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client disconnected before it had sent its request."""


class RequestGuard:
    """ASGI middleware; its Host check also rejects pages that reach this machine by DNS rebinding."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], keys: APIKeys | None) -> None:
        self.app, self.keys = app, keys
        self.hosts = tuple(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                require_small_headers(scope)
                headers = Headers(scope=scope)
                self._check_host(headers)
                if scope["path"] not in OPEN:
                    self._check_key(scope, headers)
                receive = replayed(await read_body(headers, receive), receive)
            except APIError as refused:
                request_context(scope).code = refused.code
                await refused.response(scope, receive, send)
                return
            except ClientGone:
                return
        await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if ANY not in self.hosts and name not in self.hosts:
            raise APIError(403, f"this server accepts the hosts {', '.join(self.hosts)} only", code="forbidden_host")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if self.keys is None:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        try:
            owner = self.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        except BadKeyFile as error:
            log.error("every request is rejected: %s", error)
            raise APIError(503, "the server cannot read its API keys; see its log", None, "keys_unavailable") from None
        if owner is None:
            raise APIError(401, "send the header Authorization: Bearer YOUR-API-KEY", None, "invalid_api_key")
        request_context(scope).key = owner


def require_small_headers(scope: Scope) -> None:
    """Raise APIError if the headers exceed MAX_HEADER_BYTES, more than any client of this server needs."""
    size = sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        raise APIError(
            431, f"the headers are larger than {MAX_HEADER_BYTES} bytes; send less", None, "headers_too_large"
        )


async def read_body(headers: Headers, receive: Receive) -> bytes:
    """Read the whole body, which may be chunked without a declared size; raise APIError if too large or too slow."""
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    pieces, size, more = [], 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece, more = message.get("body", b""), message.get("more_body", False)
                pieces.append(piece)
                size += len(piece)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise APIError(408, f"the body was not received within {BODY_SECONDS:g} s", None, "body_too_slow") from None
    return b"".join(pieces)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` for the app that replays the body, then continues with `receive`."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _too_large() -> APIError:
    return APIError(413, f"the body is larger than {MAX_BODY_BYTES} bytes; send less", code="body_too_large")
