"""Python client of the service, for complete and streamed responses."""

import json
import secrets
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import httpx

from edlm.client.sse import Events
from edlm.client.types import (
    Busy,
    Completion,
    Event,
    Infill,
    ListedModel,
    Reading,
    Score,
    ServerFailed,
    StreamLost,
    Tokens,
    Unreachable,
    error_of,
    read,
)

Answer = TypeVar("Answer")
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
SEEDS = 2**53 - 16  # integers that JSON represents exactly, with room for the seeds of further choices
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """Generation settings that override those registered with the model (the object `edlm` of a request)."""

    steps: int | None = None
    candidates: int | None = None
    """k; 1 is plain diffusion, 0 is exact where the energy is normalised."""
    window: tuple[float, float] | None = None
    energy_temperature: float | None = None
    energy: str | None = None
    timeout_seconds: float | None = None
    returned: tuple[Literal["token_ids", "trajectory"], ...] | None = None
    """Contents of a choice besides its text (`return` in the request, a keyword in Python)."""
    streams: Literal["independent", "shared"] | None = None
    """Whether each of several texts has its own random stream, or text i of each prompt has that of `seed + i`. None:
    independent without a seed, shared with one."""

    @property
    def fields(self) -> dict[str, Any]:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {"return" if name == "returned" else name: value for name, value in given.items()}


@dataclass(frozen=True)
class Patience:
    """Number of retries while the service is busy, and the longest wait before each of them."""

    times: int = 0
    seconds: float = 60.0
    """If the service asks for a longer wait, the request is not retried."""

    def __post_init__(self) -> None:
        if self.times < 0 or self.seconds < 0:
            raise ValueError(f"Patience(times={self.times}, seconds={self.seconds:g}): neither may be negative")


class Client:
    """Client of the service at `url`; rejections raise the errors of `edlm.client.types`.

    Each request has a seed, drawn by the client if none is given: repeated with it and the `streams` that the response
    names, the request gives the same texts. `fields` are sent as they are; ValueError if they contradict an argument.
    `timeout_seconds` is the longest silence of the service. Proxies of the environment are not used.
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
        """Close all connections."""
        self._http.close()

    def complete(
        self,
        prompt: Prompt = "",
        *,
        max_tokens: int = 16,
        seed: int | None = None,
        settings: Settings = Settings(),
        **fields: Any,
    ) -> Completion:
        """Return completions of the prompt.

        `fields` are the other fields of OpenAI (n, stop, suffix, echo, best_of, ...) or of edlm.
        """
        body = _whole(_texts(seed, settings, fields, prompt=prompt, max_tokens=max_tokens))
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
        """Return the text with its gaps filled: give pieces of text and gap sizes, or tokens with None in each gap."""
        body = _whole(_texts(seed, settings, fields, parts=parts, tokens=tokens))
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
        """Return the likelihood of the text; `fields`: draws, prompt, exact_order."""
        return read(Score, self._post("/v1/score", _body(seed, settings, fields, text=text, tokens=tokens)))

    def models(self) -> tuple[ListedModel, ...]:
        """Return the served models."""
        return tuple(read(ListedModel, model) for model in _member(self._answer("GET", "/v1/models"), "data"))

    def tokenize(self, text: str) -> Tokens:
        """Return the text as the model reads it."""
        return read(Tokens, self._post("/v1/tokenize", {"text": text}))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens."""
        return _member(self._post("/v1/detokenize", {"tokens": list(tokens)}), "text")

    def stream(
        self,
        prompt: Prompt = "",
        *,
        max_tokens: int = 16,
        seed: int | None = None,
        settings: Settings = Settings(),
        denoising: bool | None = None,
        **fields: Any,
    ) -> "Stream":
        """Stream the text, and with `denoising` every state of its canvas that the reader is fast enough for."""
        body = _texts(seed, settings, fields, prompt=prompt, max_tokens=max_tokens)
        given = {} if denoising is None else {"denoising": denoising}
        return self._stream("/v1/completions", body, given, {"denoising": False})

    def stream_infill(
        self,
        parts: Sequence[str | int] | None = None,
        *,
        tokens: Sequence[int | None] | None = None,
        seed: int | None = None,
        settings: Settings = Settings(),
        **fields: Any,
    ) -> "Stream":
        """Stream the states of the canvas while its gaps are filled, and the text at the end."""
        body = _texts(seed, settings, fields, parts=parts, tokens=tokens)
        return self._stream("/v1/infill", body, {}, {"denoising": True})

    def _stream(
        self, path: str, body: dict[str, Any], options: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> "Stream":
        if body.get("stream") is False:
            raise ValueError("stream is False, and this streams; call complete or infill")
        given = _merged("stream_options", options, body.get("stream_options"))
        request = body | {"stream": True, "stream_options": {"include_usage": True, **defaults, **given}}
        return Stream(self._send("POST", path, request, stream=True), body["seed"], body["edlm"].get("streams"))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._answer("POST", path, body)

    def _answer(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = self._send(method, path, body, stream=False)
        try:
            return response.json()
        except ValueError:
            raise ServerFailed(f"the answer is no JSON: {response.text[:80]!r}", response.status_code) from None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, stream: bool) -> httpx.Response:
        """Return the response once the service accepts; retry while it is busy, as often as `patience` allows."""
        for retries_left in range(self._patience.times, -1, -1):
            try:
                return self._try(method, path, body, stream)
            except Busy as busy:
                seconds = 1.0 if busy.retry_after is None else busy.retry_after
                if not retries_left or seconds > self._patience.seconds:
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
    """Iterator over the events of a streamed text, the last of which is `Ended`.

    Closing it, as the end of a `with` does, cancels the work on the server. Iteration raises StreamLost if the stream
    is cut before its last event, and the error of the service if it reports one.
    """

    def __init__(self, response: httpx.Response, seed: int, streams: str | None = None) -> None:
        self.seed, self.streams = seed, streams
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
        """Close the connection; the server stops generating."""
        self._events.close()
        self._response.close()

    def _read(self) -> Generator[Event, None, None]:
        parser, reading = Events(), Reading()
        try:
            for piece in self._response.iter_bytes():
                for data in parser.feed(piece):
                    yield from reading.events(data)
                    if reading.ended is not None:
                        return
            raise StreamLost(self.seed, "it ended early", self.streams)
        except (httpx.TransportError, httpx.DecodingError, UnicodeDecodeError) as error:
            raise StreamLost(self.seed, _description(error), self.streams) from None
        finally:
            self._response.close()


def _body(seed: int | None, settings: Settings, others: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    seed = secrets.randbelow(SEEDS) if seed is None else seed
    return {**given, **others, "seed": seed, "edlm": _merged("edlm", settings.fields, others.get("edlm"))}


def _texts(seed: int | None, settings: Settings, others: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return `_body`, with independent streams if the seed is drawn here, because to the service it looks given."""
    body = _body(seed, settings, others, **fields)
    if seed is None:
        body["edlm"].setdefault("streams", "independent")
    return body


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body. Raise ValueError if it asks for a stream."""
    if body.get("stream"):
        raise ValueError("stream is True, and this returns a whole answer; call stream or stream_infill")
    return body


def _merged(name: str, ours: Mapping[str, Any], theirs: Any) -> dict[str, Any]:
    """Return both mappings merged. Raise ValueError if they disagree on a field."""
    if theirs is None:
        return dict(ours)
    if not isinstance(theirs, Mapping):
        raise ValueError(f"{name} is {theirs!r}; it is an object, as {{'field': value}}")
    theirs = {field: value for field, value in theirs.items() if value is not None}
    for field in ours.keys() & theirs.keys():
        if _plain(ours[field]) != _plain(theirs[field]):
            raise ValueError(f"{name}.{field} is {theirs[field]!r}, and as an argument {ours[field]!r}; give it once")
    return {**ours, **theirs}


def _plain(value: Any) -> Any:
    """Return the value as JSON represents it, with a list for a tuple."""
    return list(value) if isinstance(value, tuple) else value


def _description(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _member(tree: Any, name: str) -> Any:
    if not isinstance(tree, dict) or name not in tree:
        raise ServerFailed(f"the answer has no {name!r}: {json.dumps(tree)[:80]}")
    return tree[name]
