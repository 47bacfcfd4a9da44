"""Answers: what the service says, as a reader gets it; whole texts, texts as they grow, and errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import pydantic

Answer = TypeVar("Answer")
DONE = "[DONE]"  # the last event of a stream that was not cut


@dataclass(frozen=True)
class Choice:
    """One text."""

    index: int
    text: str
    finish_reason: str | None = None
    """`stop`: the model or a stop string ended it. Of a stream None until the text ends."""
    token_ids: tuple[int, ...] | None = None
    """Where the request asked for them."""
    revealed_at: tuple[int, ...] | None = None
    """The step that revealed each token, where the request asked for the trajectory."""


@dataclass(frozen=True)
class Infilled:
    """One text whose gaps are filled, what was given included."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    revealed_at: tuple[int, ...] | None = None
    """The step that revealed each token, 0 where it was given, where the request asked for the trajectory."""


@dataclass(frozen=True)
class Usage:
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Details:
    """What made an answer, so that it can be made again, and what it took."""

    seed: int
    """The request's, or the one that was drawn for it."""
    steps: int
    candidates: int
    window: tuple[float, float]
    energy_temperature: float
    energy: str | None
    seconds: float
    model_version: str
    digest: str
    ess: float | None = None
    """Effective number of candidates, a mean over the steps that had something to choose."""
    denoiser_calls: int | None = None
    energy_calls: int | None = None
    prompt: tuple[str, ...] | None = None
    """What was read: a tokenizer may drop capitals or signs."""
    best_of_energies: tuple[tuple[float | None, ...], ...] | None = None
    """Of best_of, for each prompt: the energy a token of every text that was written, in the order of writing."""
    seeds: tuple[int, ...] | None = None
    """Of each choice its own: as the `seed` of a request for one text it gives the same text."""
    streams: str | None = None
    """`independent` or `shared`: how those follow from `seed`."""
    temperature: float = 1.0
    """Of the tokens."""
    law: str | None = None
    """`another law` where the temperature is not 1: the model's bounds are not those of these texts."""
    ignored: tuple[str, ...] = ()
    """Fields of the request that the service does not know; they changed nothing."""


@dataclass(frozen=True)
class Completion:
    """Texts that follow the prompts."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    details: Annotated[Details, pydantic.Field(validation_alias="edlm")]


@dataclass(frozen=True)
class Infill:
    """Texts whose gaps are filled."""

    id: str
    model: str
    choices: tuple[Infilled, ...]
    usage: Usage
    details: Annotated[Details, pydantic.Field(validation_alias="edlm")]


@dataclass(frozen=True)
class Measured:
    """A number in nats, and its standard error."""

    nats: float
    standard_error: float


@dataclass(frozen=True)
class Score:
    """How likely a text is."""

    model: str
    text: str
    """As it was read."""
    tokens: int
    nelbo: Measured
    bound: Measured
    """Of the very sampler that generates."""
    energies: dict[str, Measured]
    details: Annotated[Details, pydantic.Field(validation_alias="edlm")]


@dataclass(frozen=True)
class ModelFacts:
    """What a model is, and how it generates unless it is told otherwise."""

    model_version: str
    digest: str
    length: int
    energies: tuple[str, ...]
    energy: str | None
    sampler: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model that is served."""

    id: str
    facts: Annotated[ModelFacts, pydantic.Field(validation_alias="edlm")]


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it."""

    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    count: int


class Revealed(NamedTuple):
    """A place that got its token."""

    position: int
    token: int
    text: str
    step: int
    """That revealed it; 0: it was given."""


@dataclass(frozen=True)
class State:
    """A text on its way through the steps. A reader that is slow misses states, and never what they revealed."""

    index: int
    step: int
    steps: int
    t: float
    masked: int
    positions: int
    revealed: tuple[Revealed, ...]
    """Since the state before this one."""
    candidates: int
    denoiser_calls: int
    energy_calls: int
    ess: float | None = None
    energies: tuple[tuple[float | None, ...], ...] | None = None
    """Of the last step that weighed candidates: of each group (one; blocks, where there are) each candidate's."""
    picked: tuple[int, ...] | None = None
    """Of each group the candidate that was kept."""
    weighed_step: int | None = None
    block: int | None = None


@dataclass(frozen=True)
class Ended:
    """The end of a stream that was not cut."""

    details: Details | None
    usage: Usage | None


Event = Choice | Infilled | State | Ended


class ServiceError(Exception):
    """The service said no; `retry_after` (seconds) where it said when to ask again."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param, self.retry_after = message, status, code, param, retry_after


class InvalidRequest(ServiceError):
    """The request cannot be answered as it is; `param` names the field."""


class NotAllowed(ServiceError):
    """The key is missing or wrong, or the service does not answer to this name."""


class Busy(ServiceError):
    """As many ask as may; ask again after `retry_after` seconds."""


class DeadlineExceeded(ServiceError):
    """The text was not done in time."""


class ServerFailed(ServiceError):
    """The service could not do what it should."""


class Unreachable(ConnectionError):
    """No answer came: nothing listens there, or the connection was lost. The same request with the same seed may be
    sent again, and gives the same.
    """


class StreamLost(ConnectionError):
    """A stream ended without its end. The same request with the same `seed` and `streams` (None: the service's default)
    may be sent again, and gives the same.
    """

    def __init__(self, seed: int, cause: str, streams: str | None = None) -> None:
        also = "" if streams is None else f" and streams {streams!r}"
        super().__init__(
            f"the stream was lost before its end ({cause}); send the request again with the same seed, {seed}{also}: "
            "it gives the same text"
        )
        self.seed, self.streams = seed, streams


def read(kind: type[Answer], tree: Any) -> Answer:
    """The answer of that kind in what JSON held; fields that this reader does not know are passed over.

    Raises ServerFailed where it is none.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ServerFailed(f"the answer is no {kind.__name__}: {place}: {first['msg']}") from None


def error_of(body: str, status: int | None, retry_after: str | None = None) -> ServiceError:
    """The error in an answer, or of an event of a stream (`status` None). What is in front of the service may say its
    own in no form at all.
    """
    try:
        found = json.loads(body)["error"]
        message, code, param = str(found["message"]), found.get("code"), found.get("param")
    except (ValueError, TypeError, KeyError):
        message, code, param = body[:200] or f"status {status}", None, None
    seconds = float(retry_after) if retry_after is not None and retry_after.strip().isdigit() else None
    return _kind(status, code)(message, status, code, param, seconds)


def _kind(status: int | None, code: str | None) -> type[ServiceError]:
    if status == 504 or code == "deadline_exceeded":
        return DeadlineExceeded
    if status == 429:
        return Busy
    if status in (401, 403):
        return NotAllowed
    return InvalidRequest if status is not None and 400 <= status < 500 else ServerFailed


class Reading:
    """A stream event by event, up to its end."""

    def __init__(self) -> None:
        self.ended: Ended | None = None
        self._details: Details | None = None
        self._usage: Usage | None = None

    def events(self, data: str) -> list[Event]:
        """What an event's data says; raises the error that it reports."""
        if data == DONE:
            self.ended = Ended(self._details, self._usage)
            return [self.ended]
        try:
            chunk: Mapping[str, Any] = json.loads(data)
        except ValueError:
            raise ServerFailed(f"an event is no JSON: {data[:80]!r}") from None
        if "error" in chunk:
            raise error_of(data, status=None)
        extras = chunk.get("edlm") or {}
        if "details" in extras:
            self._details = read(Details, extras["details"])
        if chunk.get("usage") is not None:
            self._usage = read(Usage, chunk["usage"])
        kind = Infilled if chunk.get("object") == "infill.chunk" else Choice
        states: list[Event] = [read(State, extras["state"])] if "state" in extras else []
        return [*states, *(read(kind, choice) for choice in chunk.get("choices", ()))]
