"""What stands before Ray's own proxy, which buffers bodies of any size, obeys headers that clients should not set, and
refuses in plain text.

Serve's environment names it: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cluster.serving.proxy.middlewares
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.http.errors import APIError
from cluster.http.middleware.access_log import REQUEST_ID, request_id
from cluster.http.middleware.request_guard import ClientGone, again, read_body, require_small_headers
from cluster.serving.proxy_refusals import Translating

# They turn off time-outs and cancelling, or have a model loaded by a name that the client chose. Ray reads the last
# with dashes too.
CONTROL = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
    }
)


class Intake:
    """ASGI middleware: small requests come in, without control headers, each with a proper id; refusals are JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own = (REQUEST_ID.encode(), request_id(headers).encode())

        async def with_one_id(message: Message) -> None:
            """Ray adds an id to an answer that has the app's already."""
            if message["type"] == "http.response.start":
                others = [(name, value) for name, value in message.get("headers", ()) if name.lower() != own[0]]
                message = {**message, "headers": [*others, own]}
            await send(message)

        try:
            require_small_headers(scope)
            body = await read_body(headers, receive)
        except APIError as refused:
            await refused.response(scope, receive, with_one_id)
            return
        except ClientGone:
            return
        kept = [(name, value) for name, value in scope["headers"] if name not in CONTROL and name != own[0]]
        answer = Translating(scope, receive, with_one_id)
        try:
            await self.app({**scope, "headers": [*kept, own]}, again(body, receive), answer)
        finally:
            await answer.end()


def middlewares() -> list[Middleware]:
    """What Serve puts before its proxy."""
    return [Middleware(Intake)]
