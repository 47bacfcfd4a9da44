"""Middleware in front of Ray's own proxy.

That proxy buffers bodies of any size, obeys headers that clients should not set, and rejects in plain text. Serve's
environment names the middleware: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cluster.serving.proxy.middlewares
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.http.errors import APIError
from cluster.http.middleware.access_log import REQUEST_ID, request_id
from cluster.http.middleware.request_guard import ClientGone, read_body, replayed, require_small_headers
from cluster.serving.proxy_refusals import Translating

# They disable timeouts and cancellation, or load a model by a name chosen by the client. Ray also reads the last one
# with dashes.
CONTROL = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
    }
)


class Intake:
    """ASGI middleware that admits small requests, without control headers and with a valid id; rejections are JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        id_header = (REQUEST_ID.encode(), request_id(headers).encode())

        async def with_one_id(message: Message) -> None:
            """Send one id only: Ray adds one to a response that already has the app's."""
            if message["type"] == "http.response.start":
                others = [(name, value) for name, value in message.get("headers", ()) if name.lower() != id_header[0]]
                message = {**message, "headers": [*others, id_header]}
            await send(message)

        try:
            require_small_headers(scope)
            body = await read_body(headers, receive)
        except APIError as error:
            await error.response(scope, receive, with_one_id)
            return
        except ClientGone:
            return
        kept = [(name, value) for name, value in scope["headers"] if name not in CONTROL and name != id_header[0]]
        answer = Translating(scope, receive, with_one_id)
        try:
            await self.app({**scope, "headers": [*kept, id_header]}, replayed(body, receive), answer)
        finally:
            await answer.end()


def middlewares() -> list[Middleware]:
    """Return the middleware that Serve puts in front of its proxy."""
    return [Middleware(Intake)]
