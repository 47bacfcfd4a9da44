"""Server-sent events: a chunked response whose end shows whether it is complete."""

import json
import time
from asyncio import CancelledError, create_task, gather, timeout, wait
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.http.errors import APIError
from cluster.http.request_context import RequestContext

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"  # ignored by clients, and enough for proxies that close silent connections
PATIENCE_SECONDS = 5.0  # grace period after the deadline for a client that reads slowly


def event(data: dict[str, Any]) -> bytes:
    """Encode one event; JSON escapes the line ends within it."""
    return b"data: " + json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Response that sends chunks as they are generated; an error after the first chunk ends it without [DONE].

    After each silence of `keep_alive_seconds` it sends a comment. The connection to a client that does not read is
    dropped PATIENCE_SECONDS after `deadline` (`time.monotonic()`).
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        deadline: float,
        context: RequestContext,
        keep_alive_seconds: float,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._deadline, self._context = pieces, deadline, context
        self._keep_alive_seconds = keep_alive_seconds

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
            while (piece := await self._next_piece(send)) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            return
        except APIError as refused:
            failure = refused
        self._context.code = failure.code
        self._context.finish_reason = failure.code
        await send({"type": "http.response.body", "body": event(failure.body), "more_body": True})

    async def _next_piece(self, send: Send) -> bytes | None:
        """Return the next chunk, or None after the last one; meanwhile, keep the connection alive."""

        async def next_piece() -> bytes | None:
            return await anext(self._pieces, None)

        awaited = create_task(next_piece())
        try:
            while not (await wait((awaited,), timeout=self._keep_alive_seconds))[0]:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            return awaited.result()
        finally:
            # If this coroutine is cancelled, so is the generator, which must not run when it is closed.
            awaited.cancel()
            await gather(awaited, return_exceptions=True)
