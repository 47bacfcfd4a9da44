"""Cancellation of a request when its client disconnects."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

GONE: Message = {"type": "http.disconnect"}


class ClientDisconnect:
    """ASGI middleware that listens for a disconnect while the app works; runs inside the one that reads the body.

    Ray Serve cancels the work of a disconnected client; other servers only report it, and only to a pending `receive`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, answered, gone = await receive(), False, asyncio.Event()
        waiting = [body]

        async def next_message() -> Message:
            if waiting:
                return waiting.pop()
            await gone.wait()
            return GONE

        async def note(message: Message) -> None:
            nonlocal answered
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        async def answer() -> None:
            await self.app(scope, next_message, note)

        work, listener = asyncio.create_task(answer()), asyncio.create_task(listen())
        try:
            await asyncio.wait((work, listener), return_when=asyncio.FIRST_COMPLETED)
            # A server reports a disconnect after a complete response too, when the app only cleans up.
            if not work.done() and not answered:
                work.cancel()
            await asyncio.wait((work,))
        finally:
            for task in (work, listener):
                task.cancel()
            await asyncio.gather(work, listener, return_exceptions=True)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error
