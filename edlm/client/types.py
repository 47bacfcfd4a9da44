"""Response types of the client: complete and streamed texts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import pydantic

from edlm.client.errors import ServerFailed, error_of

Answer = TypeVar("Answer")
DONE = "[DONE]"  # last event of a complete stream


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of tokens, in nats, with the names of OpenAI; `Details.logprobs` says what they are."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    """The likeliest tokens in the place of each, and the token itself."""
    text_offset: tuple[int, ...]
    """Where each token begins, if the texts of the tokens are joined."""


@dataclass(frozen=True)
class Choice:
    """One generated text, or a part of it in a stream."""

    index: int
    text: str
    finish_reason: str | None = None
    """`stop`: the model or a stop string ended the text. In a stream, None until the text ends."""
    token_ids: tuple[int, ...] | None = None
    """Present if the request asked for them."""
    unmasked_at: tuple[int, ...] | None = None
    """Step that unmasked each token; present if the request asked for the trajectory."""
    logprobs: Logprobs | None = None
    """Present if the request asked for them; in a stream, of the tokens of this part of the text."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Infilled:
    """One infilled text, including its given parts."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    unmasked_at: tuple[int, ...] | None = None
    """Step that unmasked each token, 0 for a given one; present if the request asked for the trajectory."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Usage:
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Details:
    """Settings that reproduce a response, and its cost."""

    seed: int
    """Seed of the request, or the one drawn for it."""
    steps: int
    candidates: int
    window: tuple[float, float]
    energy_temperature: float
    energy: str | None
    seconds: float
    model_version: str
    digest: str
    ess: float | None = None
    """Effective number of candidates, averaged over the steps that chose among candidates."""
    denoiser_calls: int | None = None
    energy_calls: int | None = None
    prompt: tuple[str, ...] | None = None
    """Prompts as the tokenizer reads them: it may drop capitals or symbols."""
    best_of_energies: tuple[tuple[float | None, ...], ...] | None = None
    """For `best_of`, per prompt: the energy per token of every generated text, in the order of generation."""
    seeds: tuple[int, ...] | None = None
    """Seed of each choice; as the `seed` of a request for one text it gives the same text."""
    streams: str | None = None
    """`independent` or `shared`: how the seeds of the choices follow from `seed`."""
    temperature: float = 1.0
    """Token temperature."""
    top_k: int | None = None
    """Number of likeliest tokens that each token is drawn from; None: all."""
    top_p: float = 1.0
    """Probability of the nucleus that each token is drawn from."""
    distribution: str | None = None
    """`another distribution` if temperature or truncation change the model's: its bounds do not apply to the texts."""
    logprobs: Mapping[str, str | None] | None = None
    """What the log-probabilities are: those that were `generated`, and those of the `prompt`."""
    ignored: tuple[str, ...] = ()
    """Fields of the request that are unknown to the service; they had no effect."""


class Texts:
    """Texts of an answer, which prints as its text, or as its texts with their numbers."""

    choices: tuple[Any, ...]
    details: Details

    @property
    def text(self) -> str:
        """The only text. Raise ValueError if there are several."""
        if len(self.choices) != 1:
            raise ValueError(f"this holds {len(self.choices)} texts; take one of `choices`")
        return self.choices[0].text

    def __str__(self) -> str:
        several = (f"[{choice.index}] {choice}" for choice in self.choices)
        return self.text if len(self.choices) == 1 else "\n".join(several)

    def __repr__(self) -> str:
        its = self.details
        facts = f"steps={its.steps}, candidates={its.candidates}, energy={its.energy!r}, seed={its.seed}"
        facts += f", {its.distribution}" if its.distribution else ""
        facts += f", ignored: {', '.join(its.ignored)}" if its.ignored else ""
        texts = (f"  [{choice.index}] {choice.text!r}" for choice in self.choices)
        return "\n".join([f"{type(self).__name__}({facts}, {its.seconds:.2f} s)", *texts])


@dataclass(frozen=True, repr=False)
class Completion(Texts):
    """Completions of the prompts."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    details: Annotated[Details, pydantic.Field(validation_alias="edlm")]


@dataclass(frozen=True, repr=False)
class Infill(Texts):
    """Texts with their gaps filled."""

    id: str
    model: str
    choices: tuple[Infilled, ...]
    usage: Usage
    details: Annotated[Details, pydantic.Field(validation_alias="edlm")]


@dataclass(frozen=True)
class Measured:
    """Value in nats with its standard error."""

    nats: float
    standard_error: float


@dataclass(frozen=True)
class ExactMeasured:
    """Exact likelihood of a text under another distribution than that of the generated texts."""

    nats: float
    unmasking: str
    """Rule by which the steps select the positions to unmask."""
    distribution: str


@dataclass(frozen=True, repr=False)
class Score:
    """Likelihood of a text given its prompt, which prints as its estimates."""

    model: str
    text: str
    """Text as the model reads it."""
    tokens: int
    nelbo: Measured
    bound: Measured
    """Bound of the generating sampler itself."""
    energies: dict[str, Measured]
    details: Annotated[Details, pydantic.Field(validation_alias="edlm")]
    exact_order: ExactMeasured | None = None
    """With exact_order: -log p of the sampler that unmasks the most certain first in fixed counts."""

    def __repr__(self) -> str:
        estimates = {"nelbo": self.nelbo, "bound": self.bound}
        estimates |= {f"energy {name}": value for name, value in self.energies.items()}
        lines = [f"Score of {self.text!r}, {self.tokens} tokens, in nats"]
        lines += [f"  {name} {value.nats:.2f} ± {value.standard_error:.2f}" for name, value in estimates.items()]
        if self.exact_order is not None:
            lines.append(f"  exact {self.exact_order.nats:.2f}: {self.exact_order.unmasking} (another distribution)")
        return "\n".join(lines)


@dataclass(frozen=True)
class ModelFacts:
    """Properties and default generation settings of a model."""

    model_version: str
    digest: str
    length: int
    energies: tuple[str, ...]
    energy: str | None
    sampler: dict[str, Any]


@dataclass(frozen=True)
class ListedModel:
    """Served model."""

    id: str
    facts: Annotated[ModelFacts, pydantic.Field(validation_alias="edlm")]


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text as the model reads it."""

    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    count: int


class Unmasked(NamedTuple):
    """Unmasked position and its token."""

    position: int
    token: int
    text: str
    step: int
    """Step that unmasked the position; 0: given."""


@dataclass(frozen=True)
class ShownCandidates:
    """Tokens of the candidates among which a step chose."""

    positions: tuple[int, ...]
    """Positions that the candidates fill."""
    groups: tuple[int, ...]
    """Group of each position, as an index of the energies."""
    tokens: tuple[tuple[int, ...], ...]
    """Per candidate, its token at each position."""
    texts: tuple[tuple[str, ...], ...]
    """Texts of these tokens."""


@dataclass(frozen=True)
class State:
    """Denoising state of a text in progress. A slow reader misses states, but never the tokens that they unmasked."""

    index: int
    step: int
    steps: int
    t: float
    masked: int
    positions: int
    unmasked: tuple[Unmasked, ...]
    """Positions unmasked since the previous state."""
    candidates: int
    denoiser_calls: int
    energy_calls: int
    ess: float | None = None
    energies: tuple[tuple[float | None, ...], ...] | None = None
    """Energies of the candidates of each group (a single group, or one per block), in the last step that scored any."""
    picked: tuple[int, ...] | None = None
    """Candidate that was kept in each group."""
    scored_step: int | None = None
    block: int | None = None
    candidate_tokens: ShownCandidates | None = None
    """In the first state after each step that chose, with `stream_options={"candidate_tokens": True}`."""


@dataclass(frozen=True)
class Ended:
    """End of a complete stream."""

    details: Details | None
    usage: Usage | None


Event = Choice | Infilled | State | Ended


def read(kind: type[Answer], tree: Any) -> Answer:
    """Return the response of this kind in a JSON tree, ignoring unknown fields.

    Raise ServerFailed if the tree does not match.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"]))
        raise ServerFailed(f"the answer is no {kind.__name__}: {location}: {first['msg']}") from None


class Reading:
    """Incremental reader of a stream, event by event up to its end."""

    def __init__(self) -> None:
        self.ended: Ended | None = None
        self._details: Details | None = None
        self._usage: Usage | None = None

    def events(self, data: str) -> list[Event]:
        """Return the events in the data of a server-sent event. Raise the error that it reports."""
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
