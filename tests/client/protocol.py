"""A server that speaks the service's protocol as it was agreed on, for tests of the client."""

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

DETAILS = {
    "seed": 7, "steps": 4, "candidates": 2, "window": [0.0, 1.0], "energy_temperature": 1.0, "energy": "step",
    "ess": 1.5, "denoiser_calls": 4, "energy_calls": 8, "seconds": 0.1, "model_version": "1", "digest": "d",
    "something": "that a later server adds",
}  # fmt: skip

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

STATE = {
    "index": 0, "step": 3, "steps": 4, "t": 0.75, "masked": 1, "positions": 2, "unmasked": [[0, 5, "a\u2028", 3]],
    "ess": None, "candidates": 2, "energies": [[1.0, None]], "picked": [0], "scored_step": 4, "block": None,
    "denoiser_calls": 1, "energy_calls": 2,
}  # fmt: skip

LONG = 10_000  # events of a text that the client does not read to its end


@dataclass
class Protocol:
    """A server that answers as its prompt says, and remembers what it was asked."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    busy: int = 0
    """How often it is still going to be busy."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/infill", self.infill, methods=["POST"]),
                Route("/v1/score", self.score, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/detokenize", self.detokenize, methods=["POST"]),
            ]
        )

    async def complete(self, request: Request):
        body = await request.json()
        self.asked.append(body | {"key": request.headers.get("authorization")})
        if self.busy:
            self.busy -= 1
            return refusal(429, "overloaded", None, {"retry-after": "0"})
        match body["prompt"]:
            case "wrong":
                return refusal(400, "work_limit_exceeded", "edlm.steps")
            case "key":
                return refusal(401, "invalid_api_key", None)
            case "late":
                return refusal(504, "deadline_exceeded", None)
            case "proxy":
                return PlainTextResponse("too many", 429)
            case "page":
                return PlainTextResponse("<html>")
            case "other":
                return JSONResponse({"id": 1})
        if body.get("stream"):
            return StreamingResponse(self.events(body["prompt"]), media_type="text/event-stream")
        choice = {"index": 0, "text": "ab", "finish_reason": "length", "logprobs": None}
        return JSONResponse(
            {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": USAGE}
            | {"edlm": DETAILS | {"seed": body["seed"]}}
        )

    async def events(self, prompt: str):
        def text(piece: str, reason: str | None = None) -> str:
            choice = {"index": 0, "text": piece, "finish_reason": reason, "logprobs": None}
            return event({"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]})

        yield event({"id": "c", "choices": [], "edlm": {"state": STATE}})
        yield text("a\u2028")
        if prompt == "cut":
            return
        if prompt == "fails":
            yield event(
                {"error": {"message": "late", "type": "server_error", "param": None, "code": "deadline_exceeded"}}
            )
            return
        try:
            for _ in range(LONG if prompt == "long" else 0):
                yield text("a")
                await asyncio.sleep(0.005)
        finally:
            self.cancelled.set()
        yield text("b", "stop")
        yield event({"id": "c", "choices": [], "usage": USAGE, "edlm": {"details": DETAILS}})
        yield "data: [DONE]\n\n"

    async def infill(self, request: Request):
        body = await request.json()
        self.asked.append(body)
        choice = {"index": 0, "text": "abc", "tokens": [1, 2, 3], "finish_reason": "length"}
        if body.get("stream"):
            lines = [
                event({"object": "infill.chunk", "choices": [], "edlm": {"state": STATE}}),
                event({"object": "infill.chunk", "choices": [choice]}),
                "data: [DONE]\n\n",
            ]
            return StreamingResponse(iter(lines), media_type="text/event-stream")
        return JSONResponse({"id": "i", "model": "m", "choices": [choice], "usage": USAGE, "edlm": DETAILS})

    async def score(self, request: Request):
        self.asked.append(await request.json())
        nats = {"nats": 2.0, "standard_error": 0.5}
        answer = {"model": "m", "text": "a", "tokens": 1, "nelbo": nats, "bound": nats, "energies": {"step": nats}}
        return JSONResponse(answer | {"edlm": DETAILS})

    async def models(self, _: Request):
        facts = {
            "model_version": "1",
            "digest": "d",
            "length": 12,
            "energies": ["step"],
            "energy": "step",
            "sampler": {},
        }
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "edlm": facts}]})

    async def tokenize(self, request: Request):
        text = (await request.json())["text"]
        return JSONResponse({"tokens": list(range(len(text))), "pieces": list(text), "count": len(text)})

    async def detokenize(self, request: Request):
        return JSONResponse({"text": "".join(chr(97 + token) for token in (await request.json())["tokens"])})


def event(chunk: dict) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def refusal(status: int, code: str, param: str | None, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"message": f"no: {code}", "type": "invalid_request_error", "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)
