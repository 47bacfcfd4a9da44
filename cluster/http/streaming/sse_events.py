"""Server-sent events: a chunked response whose end shows whether it is complete."""

import json
import time
from asyncio import CancelledError, timeout
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.http.errors import APIError
from cluster.http.request_context import RequestContext

DONE = b"data: [DONE]\n\n"
PATIENCE_SECONDS = 5.0  # grace period after the deadline for a client that reads slowly


def event(data: dict[str, Any]) -> bytes:
    """Encode one event; JSON escapes the line ends within it."""
    return b"data: " + json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Response that sends chunks as they are generated; an error after the first chunk ends it without [DONE].

    The connection to a client that does not read is dropped PATIENCE_SECONDS after `deadline` (`time.monotonic()`).
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes, None], deadline: float, context: RequestContext) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._deadline, self._context = pieces, deadline, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all chunks, or stop when the client is gone or too slow; in every case end the underlying generation."""
        try:
            async with timeout(max(0.0, self._deadline - time.monotonic()) + PATIENCE_SECONDS):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await self._send_pieces(send)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            self._context.code = self._context.finish_reason = "client_too_slow"
        except CancelledError:
            self._context.finish_reason = "cancelled"
            raise
        finally:
            await self._pieces.aclose()

    async def _send_pieces(self, send: Send) -> None:
        try:
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            return
        except APIError as refused:
            failure = refused
        self._context.code = failure.code
        self._context.finish_reason = failure.code
        await send({"type": "http.response.body", "body": event(failure.body), "more_body": True})
