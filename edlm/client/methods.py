"""Methods of a client: the requests that it sends, and the types of their answers."""

import dataclasses
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from edlm.client.errors import ServerFailed
from edlm.client.settings import AS_REGISTERED, Settings
from edlm.client.types import Completion, Infill, ListedModel, Score, Tokens, read

Answer = TypeVar("Answer")
Opened = TypeVar("Opened")
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
SEEDS = 2**53 - 16  # integers that JSON represents exactly, with room for the seeds of further choices


class ConstraintForm(Protocol):
    """What a text is to satisfy: `edlm.Regex`, `edlm.OneOf` or `edlm.JsonSchema`."""

    @property
    def request_form(self) -> Mapping[str, Any]: ...


SETTINGS = frozenset(field.name for field in dataclasses.fields(Settings))


class ServiceMethods(ABC, Generic[Opened]):
    """Requests to the service; `Client` returns their answers, `AsyncClient` awaitables of them.

    Each request has a seed, drawn by the client if none is given: repeated with it and the `streams` that the response
    names, the request gives the same texts. None is the service's default.

    `temperature`, `top_k` and `top_p` change what each token is drawn from, and with it the distribution of the texts.
    `logprobs` returns log p of each token and of this number of likeliest ones. `settings` may be given by their names,
    too: `complete("the ", steps=4)`. `constraint` is what the text satisfies, or the whole text with its gaps filled:
    what a model of `edlm.load` takes, or the mapping that is sent, such as {"regex": "a+"}.
    Other `fields` are sent as they are; ValueError if they contradict an argument.
    """

    @abstractmethod
    def _answer(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Answer]) -> Answer:
        """Return what `read` makes of the answer's JSON. Without a body, the request is a GET."""

    @abstractmethod
    def _streamed(self, path: str, body: Mapping[str, Any], seed: int, streams: str | None) -> Opened:
        """Return the stream of the answer's events."""

    def complete(
        self,
        prompt: Prompt = "",
        *,
        max_tokens: int = 16,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        logprobs: int | None = None,
        constraint: ConstraintForm | Mapping[str, Any] | None = None,
        seed: int | None = None,
        settings: Settings = AS_REGISTERED,
        **fields: Any,
    ) -> Completion:
        """Return completions of the prompt.

        `fields` are settings, and the other fields of OpenAI (n, stop, suffix, echo, best_of, ...) or of edlm.
        """
        body = _texts(
            seed, settings, fields, constraint, prompt=prompt, max_tokens=max_tokens, temperature=temperature,
            top_k=top_k, top_p=top_p, logprobs=logprobs,
        )  # fmt: skip
        return self._answer("/v1/completions", _whole(body), lambda tree: read(Completion, tree))

    def infill(
        self,
        parts: Sequence[str | int] | None = None,
        *,
        tokens: Sequence[int | None] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        constraint: ConstraintForm | Mapping[str, Any] | None = None,
        seed: int | None = None,
        settings: Settings = AS_REGISTERED,
        **fields: Any,
    ) -> Infill:
        """Return the text with its gaps filled: give pieces of text and gap sizes, or tokens with None in each gap."""
        body = _texts(
            seed,
            settings,
            fields,
            constraint,
            parts=parts,
            tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        return self._answer("/v1/infill", _whole(body), lambda tree: read(Infill, tree))

    def score(
        self,
        text: str | None = None,
        *,
        tokens: Sequence[int] | None = None,
        seed: int | None = None,
        settings: Settings = AS_REGISTERED,
        **fields: Any,
    ) -> Score:
        """Return the likelihood of the text; `fields`: draws, prompt, exact_order, and settings."""
        body = _body(seed, settings, fields, text=text, tokens=tokens)
        return self._answer("/v1/score", body, lambda tree: read(Score, tree))

    def models(self) -> tuple[ListedModel, ...]:
        """Return the served models."""
        return self._answer(
            "/v1/models", None, lambda tree: tuple(read(ListedModel, model) for model in _member(tree, "data"))
        )

    def tokenize(self, text: str) -> Tokens:
        """Return the text as the model reads it."""
        return self._answer("/v1/tokenize", {"text": text}, lambda tree: read(Tokens, tree))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens."""
        return self._answer("/v1/detokenize", {"tokens": list(tokens)}, lambda tree: _member(tree, "text"))

    def stream(
        self,
        prompt: Prompt = "",
        *,
        max_tokens: int = 16,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        logprobs: int | None = None,
        constraint: ConstraintForm | Mapping[str, Any] | None = None,
        seed: int | None = None,
        settings: Settings = AS_REGISTERED,
        denoising: bool | None = None,
        **fields: Any,
    ) -> Opened:
        """Stream the text, and with `denoising` every state of its canvas that the reader is fast enough for."""
        body = _texts(
            seed, settings, fields, constraint, prompt=prompt, max_tokens=max_tokens, temperature=temperature,
            top_k=top_k, top_p=top_p, logprobs=logprobs,
        )  # fmt: skip
        given = {} if denoising is None else {"denoising": denoising}
        return self._stream("/v1/completions", body, given, {"denoising": False})

    def stream_infill(
        self,
        parts: Sequence[str | int] | None = None,
        *,
        tokens: Sequence[int | None] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        constraint: ConstraintForm | Mapping[str, Any] | None = None,
        seed: int | None = None,
        settings: Settings = AS_REGISTERED,
        **fields: Any,
    ) -> Opened:
        """Stream the states of the canvas while its gaps are filled, and the text at the end."""
        body = _texts(
            seed,
            settings,
            fields,
            constraint,
            parts=parts,
            tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        return self._stream("/v1/infill", body, {}, {"denoising": True})

    def _stream(
        self, path: str, body: dict[str, Any], options: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> Opened:
        if body.get("stream") is False:
            raise ValueError("stream is False, and this streams; call complete or infill")
        given = _merged("stream_options", options, body.get("stream_options"))
        request = body | {"stream": True, "stream_options": {"include_usage": True, **defaults, **given}}
        return self._streamed(path, request, body["seed"], body["edlm"].get("streams"))


def _body(seed: int | None, settings: Settings, others: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    if not isinstance(settings, Settings):
        raise TypeError(f"settings is {settings!r}; give Settings(steps=4), or steps=4 by itself")
    named = Settings(**{name: value for name, value in others.items() if name in SETTINGS})
    others = {name: value for name, value in others.items() if name not in SETTINGS}
    seed = secrets.randbelow(SEEDS) if seed is None else seed
    edlm = _merged("edlm", _merged("edlm", settings.fields, named.fields), others.get("edlm"))
    return {**given, **others, "seed": seed, "edlm": edlm}


def _texts(
    seed: int | None,
    settings: Settings,
    others: Mapping[str, Any],
    constraint: ConstraintForm | Mapping[str, Any] | None,
    **fields: Any,
) -> dict[str, Any]:
    """Return `_body`, with independent streams if the seed is drawn here, because to the service it looks given."""
    body = _body(seed, settings, others, **fields)
    if constraint is not None:
        form = constraint if isinstance(constraint, Mapping) else getattr(constraint, "request_form", None)
        if form is None:
            raise TypeError(f"constraint is {constraint!r}; give edlm.Regex, edlm.OneOf, edlm.JsonSchema or a mapping")
        body["edlm"] = _merged("edlm", {"constraint": dict(form)}, body["edlm"])
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


def _member(tree: Any, name: str) -> Any:
    if not isinstance(tree, dict) or name not in tree:
        raise ServerFailed(f"the answer has no {name!r}: {json.dumps(tree)[:80]}")
    return tree[name]
