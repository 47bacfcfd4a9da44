"""The gate before the routes: whose name was called, how much may come in, and in what form."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.refusal import Refused

MAX_BODY_BYTES = 2**20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Gate:
    """ASGI middleware. With `loopback`, a page whose name was bound to 127.0.0.1 (DNS rebinding) gets no answer."""

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self.app, self.loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                headers = Headers(scope=scope)
                self._check_host(headers)
                if scope["method"] == "POST":
                    _check_form(headers)
                    receive = _again(await _body(receive), receive)
            except Refused as refused:
                await refused.response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.loopback and name not in LOOPBACK:
            raise Refused(403, "this server answers to 127.0.0.1 and localhost only", code="forbidden_host")


def _check_form(headers: Headers) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send the header content-type: application/json", code="unsupported_media_type")
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
        raise _too_large()


async def _body(receive: Receive) -> bytes:
    """The whole body, which may come in pieces of no declared size."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` for the app, which has not read the body yet."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _too_large() -> Refused:
    return Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes; send less", code="body_too_large")
