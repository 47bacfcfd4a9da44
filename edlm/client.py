"""The client: the service from Python, whole answers and texts as they grow."""

import json
import secrets
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import httpx

from edlm.answers import (
    Busy,
    Completion,
    Event,
    Infill,
    Model,
    Reading,
    Score,
    ServerFailed,
    StreamLost,
    Tokens,
    Unreachable,
    error_of,
    read,
)
from edlm.sse import Events

Answer = TypeVar("Answer")
SEEDS = 2**53 - 16  # what JSON keeps exactly, with room for the seeds of further choices
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """How to generate, where it differs from what the model was registered with (the object `edlm` of a request)."""

    steps: int | None = None
    candidates: int | None = None
    """k; 1 is plain diffusion, 0 is exact where the energy is normalised."""
    window: tuple[float, float] | None = None
    energy_temperature: float | None = None
    energy: str | None = None
    timeout_seconds: float | None = None
    returned: tuple[Literal["token_ids", "trajectory"], ...] | None = None
    """What a choice holds besides its text (`return`, which is no name in Python)."""

    @property
    def fields(self) -> dict[str, Any]:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {"return" if name == "returned" else name: value for name, value in given.items()}


@dataclass(frozen=True)
class Patience:
    """How often to ask again where the service is busy, and how long to wait each time at most."""

    times: int = 0
    seconds: float = 60.0
    """A service that says to wait longer is not asked again."""


class Client:
    """The service at `url`. What it refuses is raised as one of `edlm.answers`' errors.

    Each request has a seed, drawn here where none is given: sent again with it, the request gives the same text.
    `timeout_seconds` is how long the service may say nothing. No proxy of the environment is used.
    """

    def __init__(
        self, url: str, key: str | None = None, *, timeout_seconds: float = 300.0, patience: Patience = Patience()
    ) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        self._patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Afterwards no connection is open."""
        self._http.close()

    def complete(
        self,
        prompt: str | Sequence[str] | Sequence[int] = "",
        *,
        max_tokens: int = 16,
        seed: int | None = None,
        settings: Settings = Settings(),
        **fields: Any,
    ) -> Completion:
        """What follows the prompt; `fields` are OpenAI's others (n, stop, suffix, echo, logprobs, best_of, ...)."""
        body = _body(seed, settings, fields, prompt=prompt, max_tokens=max_tokens)
        return read(Completion, self._post("/v1/completions", body))

    def infill(
        self,
        parts: Sequence[str | int] | None = None,
        *,
        tokens: Sequence[int | None] | None = None,
        seed: int | None = None,
        settings: Settings = Settings(),
        **fields: Any,
    ) -> Infill:
        """The text with its gaps filled: pieces of text and sizes of gaps, or tokens with None in each hole."""
        body = _body(seed, settings, fields, parts=parts, tokens=tokens)
        return read(Infill, self._post("/v1/infill", body))

    def score(
        self,
        text: str | None = None,
        *,
        tokens: Sequence[int] | None = None,
        seed: int | None = None,
        settings: Settings = Settings(),
        **fields: Any,
    ) -> Score:
        """How likely the text is; `fields`: draws."""
        return read(Score, self._post("/v1/score", _body(seed, settings, fields, text=text, tokens=tokens)))

    def models(self) -> tuple[Model, ...]:
        """What is served."""
        return tuple(read(Model, one) for one in _member(self._answer("GET", "/v1/models"), "data"))

    def tokenize(self, text: str) -> Tokens:
        """The text as the model reads it."""
        return read(Tokens, self._post("/v1/tokenize", {"text": text}))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of the tokens."""
        return _member(self._post("/v1/detokenize", {"tokens": list(tokens)}), "text")

    def stream(
        self,
        prompt: str | Sequence[str] | Sequence[int] = "",
        *,
        max_tokens: int = 16,
        seed: int | None = None,
        settings: Settings = Settings(),
        denoising: bool = False,
        **fields: Any,
    ) -> "Stream":
        """The text as it grows, and with `denoising` every state of its canvas that there is time for."""
        body = _body(seed, settings, fields, prompt=prompt, max_tokens=max_tokens)
        return self._stream("/v1/completions", body, denoising)

    def stream_infill(
        self,
        parts: Sequence[str | int] | None = None,
        *,
        tokens: Sequence[int | None] | None = None,
        seed: int | None = None,
        settings: Settings = Settings(),
        **fields: Any,
    ) -> "Stream":
        """The states of the canvas while its gaps are filled, and the text at the end."""
        return self._stream("/v1/infill", _body(seed, settings, fields, parts=parts, tokens=tokens), denoising=True)

    def _stream(self, path: str, body: dict[str, Any], denoising: bool) -> "Stream":
        options = {"include_usage": True, "denoising": denoising}
        wanted = body | {"stream": True, "stream_options": options}
        return Stream(self._send("POST", path, wanted, stream=True), body["seed"])

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._answer("POST", path, body)

    def _answer(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = self._send(method, path, body, stream=False)
        try:
            return response.json()
        except ValueError:
            raise ServerFailed(f"the answer is no JSON: {response.text[:80]!r}", response.status_code) from None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, stream: bool) -> httpx.Response:
        """The answer, once the service accepted; asks again where it is busy, as often as patience allows."""
        for again in range(self._patience.times, -1, -1):
            try:
                return self._try(method, path, body, stream)
            except Busy as busy:
                seconds = 1.0 if busy.retry_after is None else busy.retry_after
                if not again or seconds > self._patience.seconds:
                    raise
                time.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")

    def _try(self, method: str, path: str, body: Mapping[str, Any] | None, stream: bool) -> httpx.Response:
        request = self._http.build_request(method, path, json=body)
        try:
            response = self._http.send(request, stream=stream)
            if response.is_success:
                return response
            text = response.read().decode("utf-8", "replace")
        except httpx.TransportError as error:
            cause = f"{type(error).__name__}: {error}"
            raise Unreachable(
                f"no answer from {request.url} ({cause}); it may be sent again, with the same seed"
            ) from None
        raise error_of(text, response.status_code, response.headers.get("retry-after"))


class Stream:
    """A text as it grows: iterate it for its events, the last of which is `Ended`.

    Closing it, which the end of a `with` does, cancels the work on the server. Raises StreamLost where the stream ends
    without its end, and an error of the service's where it reports one.
    """

    def __init__(self, response: httpx.Response, seed: int) -> None:
        self.seed = seed
        self._response = response
        self._events = self._read()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Afterwards the connection is closed, and what was not read is not made."""
        self._events.close()
        self._response.close()

    def _read(self) -> Generator[Event, None, None]:
        found, reading = Events(), Reading()
        try:
            for piece in self._response.iter_bytes():
                for data in found.feed(piece):
                    yield from reading.events(data)
                    if reading.ended is not None:
                        return
            raise StreamLost(self.seed, "it ended early")
        except httpx.TransportError as error:
            raise StreamLost(self.seed, _said(error)) from None
        finally:
            self._response.close()


def _body(seed: int | None, settings: Settings, others: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    seed = secrets.randbelow(SEEDS) if seed is None else seed
    return {**given, **others, "seed": seed, "edlm": settings.fields}


def _said(error: httpx.TransportError) -> str:
    return f"{type(error).__name__}: {error}"


def _member(tree: Any, name: str) -> Any:
    if not isinstance(tree, dict) or name not in tree:
        raise ServerFailed(f"the answer has no {name!r}: {json.dumps(tree)[:80]}")
    return tree[name]
