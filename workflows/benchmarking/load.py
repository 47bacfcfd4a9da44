"""Load: planned requests are sent to a service at their times, and what became of each is told.

The loop is open: a request is sent when it is due, however many are still unanswered, and its seconds count from when
it was due. So a service that is slow cannot slow those who ask it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

from edlm.client.sse import Events
from edlm.client.types import Busy, Completion, DeadlineExceeded, Reading, ServiceError, State, error_of, read
from workflows.benchmarking.arrivals import Planned

Ending = Literal["done", "busy", "late", "cancelled", "lost", "failed", "hung"]


@dataclass(frozen=True)
class Asking:
    """How all of the requests are asked."""

    prompt: str = ""
    max_tokens: int = 16
    deadline: float = 60.0
    """Seconds, from when a request is due; sent along as edlm.timeout_seconds, and the bound of goodput."""
    spare: float = 10.0
    """Seconds beyond its deadline after which a request that has not ended hangs."""
    states: bool = False
    """Whether each is streamed with its denoising states."""
    key: str | None = None

    def body(self, request: Planned) -> dict[str, Any]:
        settings = {"steps": request.steps, "candidates": request.candidates, "timeout_seconds": self.deadline}
        streamed = {"stream": True, "stream_options": {"denoising": True, "include_usage": True}} if self.states else {}
        return {
            "prompt": self.prompt, "max_tokens": self.max_tokens, "seed": request.seed, "edlm": settings, **streamed
        }  # fmt: skip


@dataclass(frozen=True)
class RequestOutcome:
    """What became of a request."""

    request: Planned
    ending: Ending
    """`busy`: refused with 429; `late`: ended by its deadline; `lost`: the connection ended without an answer;
    `hung`: it said nothing until well past its deadline; `failed`: any other answer.
    """
    seconds: float
    """From when it was due to its end."""
    first_seconds: float | None = None
    """To the first state that the network had a part in."""
    tokens: int = 0
    retry_after: float | None = None
    said: str = ""
    """What the service said of an error."""


def load(url: str, requests: Sequence[Planned], asking: Asking) -> list[RequestOutcome]:
    """What became of each of the requests, in their order, once all have ended."""
    return asyncio.run(_load(url, requests, asking))


def burst(url: str, requests: Sequence[Planned], deadline: float, key: str | None = None) -> list[RequestOutcome]:
    """What became of requests that all come at once, each with a `deadline` in seconds."""
    return load(url, [replace(one, at=0.0) for one in requests], Asking(deadline=deadline, key=key))


async def _load(url: str, requests: Sequence[Planned], asking: Asking) -> list[RequestOutcome]:
    headers = {} if asking.key is None else {"authorization": f"Bearer {asking.key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None, trust_env=False) as http:
        start = time.monotonic()
        return list(await asyncio.gather(*(_outcome(http, one, asking, start + one.at) for one in requests)))


async def _outcome(http: httpx.AsyncClient, request: Planned, asking: Asking, due: float) -> RequestOutcome:
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    told = _Told(due)
    patience = asking.deadline + asking.spare if request.cancel_after is None else request.cancel_after
    ending, said, retry_after = "done", "", None
    try:
        async with asyncio.timeout(patience):
            await _ask(http, asking.body(request), told)
    except TimeoutError:
        ending = "hung" if request.cancel_after is None else "cancelled"
    except Busy as busy:
        ending, said, retry_after = "busy", busy.message, busy.retry_after
    except DeadlineExceeded as error:
        ending, said = "late", error.message
    except ServiceError as error:
        ending, said = "failed", f"{error.status}: {error.message}"
    except httpx.TransportError as error:
        ending, said = "lost", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - due
    return RequestOutcome(request, ending, seconds, told.first_seconds, told.tokens, retry_after, said)


@dataclass
class _Told:
    """What an answer has told so far."""

    due: float
    first_seconds: float | None = None
    tokens: int = 0


async def _ask(http: httpx.AsyncClient, body: dict[str, Any], told: _Told) -> None:
    """Afterwards the whole answer is there; raises what it says went wrong."""
    async with http.stream("POST", "/v1/completions", json=body) as response:
        if not response.is_success:
            text = (await response.aread()).decode("utf-8", "replace")
            raise error_of(text, response.status_code, response.headers.get("retry-after"))
        if "stream" in body:
            await _follow(response, told)
        else:
            await response.aread()
            told.tokens = read(Completion, response.json()).usage.completion_tokens


async def _follow(response: httpx.Response, told: _Told) -> None:
    found, reading = Events(), Reading()
    async for piece in response.aiter_bytes():
        for data in found.feed(piece):
            for event in reading.events(data):
                if isinstance(event, State) and event.denoiser_calls and told.first_seconds is None:
                    told.first_seconds = time.monotonic() - told.due
    if reading.ended is None:
        raise httpx.RemoteProtocolError("the stream ended early")
    told.tokens = 0 if reading.ended.usage is None else reading.ended.usage.completion_tokens
