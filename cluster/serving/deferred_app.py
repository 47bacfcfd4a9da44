"""Deferred ASGI app: Ray Serve builds the app before `reconfigure` names the model."""

from fastapi import FastAPI
from starlette.routing import BaseRoute, Router
from starlette.types import Receive, Scope, Send


class DeferredApp:
    """ASGI app that forwards requests to `app`; before it is set, only lifespan events are handled."""

    def __init__(self) -> None:
        self.app: FastAPI | None = None

    @property
    def routes(self) -> list[BaseRoute]:
        """Routes of `app`, after which Serve names its own metrics."""
        return [] if self.app is None else self.app.routes

    @property
    def router(self) -> Router:
        """Router of `app`, which Serve asks how to treat a trailing slash."""
        assert self.app is not None
        return self.app.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{event}"
                await send({"type": f"lifespan.{event}.complete"})
            return
        assert self.app is not None, "a replica received a request before its first model was loaded"
        await self.app(scope, receive, send)
