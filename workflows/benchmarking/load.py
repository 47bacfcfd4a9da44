"""Load: planned requests are sent to a service at their times, and the outcome of each is recorded.

The loop is open: a request is sent when it is due, however many are still unanswered, and its seconds count from its
due time. A slow service therefore cannot slow down its clients.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

from edlm.client.errors import Busy, DeadlineExceeded, ServiceError, error_of
from edlm.client.sse import Events
from edlm.client.types import Completion, Reading, State, read
from workflows.benchmarking.arrivals import PlannedRequest

Ending = Literal["done", "busy", "late", "cancelled", "lost", "failed", "hung"]


@dataclass(frozen=True)
class RequestSettings:
    """Settings that all requests share."""

    prompt: str = ""
    max_tokens: int = 16
    deadline: float = 60.0
    """Seconds from the due time; sent along as edlm.timeout_seconds, and the limit of goodput."""
    spare: float = 10.0
    """Seconds past its deadline after which an unfinished request counts as hung."""
    states: bool = False
    """Whether each response is streamed with its denoising states."""
    key: str | None = None

    def body(self, request: PlannedRequest) -> dict[str, Any]:
        settings = {"steps": request.steps, "candidates": request.candidates, "timeout_seconds": self.deadline}
        streamed = {"stream": True, "stream_options": {"denoising": True, "include_usage": True}} if self.states else {}
        return {
            "prompt": self.prompt, "max_tokens": self.max_tokens, "seed": request.seed, "edlm": settings, **streamed
        }  # fmt: skip


@dataclass(frozen=True)
class RequestOutcome:
    """The outcome of a request."""

    request: PlannedRequest
    ending: Ending
    """`busy`: rejected with 429; `late`: ended by its deadline; `lost`: the connection ended without an answer;
    `hung`: unfinished well past its deadline; `failed`: any other answer.
    """
    seconds: float
    """From its due time to its end."""
    first_seconds: float | None = None
    """From its due time to the first state that took a denoiser call."""
    tokens: int = 0
    retry_after: float | None = None
    error_message: str = ""


def load(url: str, requests: Sequence[PlannedRequest], settings: RequestSettings) -> list[RequestOutcome]:
    """Send the requests and return their outcomes, in their order, once all have ended."""
    return asyncio.run(_load(url, requests, settings))


def burst(
    url: str, requests: Sequence[PlannedRequest], deadline: float, key: str | None = None
) -> list[RequestOutcome]:
    """Send the requests all at once, each with a `deadline` in seconds, and return their outcomes."""
    return load(url, [replace(request, at=0.0) for request in requests], RequestSettings(deadline=deadline, key=key))


async def _load(url: str, requests: Sequence[PlannedRequest], settings: RequestSettings) -> list[RequestOutcome]:
    headers = {} if settings.key is None else {"authorization": f"Bearer {settings.key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None, trust_env=False) as http:
        start = time.monotonic()
        return list(
            await asyncio.gather(*(_outcome(http, request, settings, start + request.at) for request in requests))
        )


async def _outcome(
    http: httpx.AsyncClient, request: PlannedRequest, settings: RequestSettings, due: float
) -> RequestOutcome:
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    progress = _ResponseProgress(due)
    timeout = settings.deadline + settings.spare if request.cancel_after is None else request.cancel_after
    ending, message, retry_after = "done", "", None
    try:
        async with asyncio.timeout(timeout):
            await _ask(http, settings.body(request), progress)
    except TimeoutError:
        ending = "hung" if request.cancel_after is None else "cancelled"
    except Busy as busy:
        ending, message, retry_after = "busy", busy.message, busy.retry_after
    except DeadlineExceeded as error:
        ending, message = "late", error.message
    except ServiceError as error:
        ending, message = "failed", f"{error.status}: {error.message}"
    except httpx.TransportError as error:
        ending, message = "lost", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - due
    return RequestOutcome(request, ending, seconds, progress.first_seconds, progress.tokens, retry_after, message)


@dataclass
class _ResponseProgress:
    """Progress of an answer."""

    due: float
    first_seconds: float | None = None
    tokens: int = 0


async def _ask(http: httpx.AsyncClient, body: dict[str, Any], progress: _ResponseProgress) -> None:
    """Send the request and read the whole answer into `progress`; raise the error that the service reports."""
    async with http.stream("POST", "/v1/completions", json=body) as response:
        if not response.is_success:
            text = (await response.aread()).decode("utf-8", "replace")
            raise error_of(text, response.status_code, response.headers.get("retry-after"))
        if "stream" in body:
            await _follow(response, progress)
        else:
            await response.aread()
            progress.tokens = read(Completion, response.json()).usage.completion_tokens


async def _follow(response: httpx.Response, progress: _ResponseProgress) -> None:
    stream, reading = Events(), Reading()
    async for piece in response.aiter_bytes():
        for data in stream.feed(piece):
            for event in reading.events(data):
                if isinstance(event, State) and event.denoiser_calls and progress.first_seconds is None:
                    progress.first_seconds = time.monotonic() - progress.due
    if reading.ended is None:
        raise httpx.RemoteProtocolError("the stream ended early")
    progress.tokens = 0 if reading.ended.usage is None else reading.ended.usage.completion_tokens
