"""An app that is there once a model is: Ray Serve wants the app before it says which model it is to be."""

from fastapi import FastAPI
from starlette.routing import BaseRoute, Router
from starlette.types import Receive, Scope, Send


class DeferredApp:
    """ASGI app that hands everything to `app`; nothing but the start and the end of the server comes before it."""

    def __init__(self) -> None:
        self.app: FastAPI | None = None

    @property
    def routes(self) -> list[BaseRoute]:
        """Serve names its own metrics after them."""
        return [] if self.app is None else self.app.routes

    @property
    def router(self) -> Router:
        """Serve asks it what to do with a trailing slash."""
        assert self.app is not None
        return self.app.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{event}"
                await send({"type": f"lifespan.{event}.complete"})
            return
        assert self.app is not None, "a replica is asked nothing before it has its first model"
        await self.app(scope, receive, send)
