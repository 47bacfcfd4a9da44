"""What a request may say and what an answer looks like: OpenAI's completions, with one object `edlm` of our own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.refusal import Refused
from edlm.sampler import Sampler

MAX_PROMPT = 2**16  # characters or tokens; of a longer one than the canvas the end is read
MAX_PROMPTS = 8
MAX_PARTS = 64
MAX_CHOICES = 8
MAX_TOKENS = 4096
MAX_STEPS = 1024
MAX_CANDIDATES = 64
MAX_DRAWS = 64
MAX_WORK = 2**14  # passes of the denoiser in one request, an energy's candidate counting as three quarters of one
ENERGY_SHARE = 0.75
MAX_SEED = 2**53 - 1  # what every reader of JSON keeps exactly

# OpenAI's fields that this server does not act on, with the value that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": None,
    "presence_penalty": 0,
    "stop": None,
    "stream": False,
    "stream_options": None,
    "suffix": None,
    "temperature": 1,
    "top_p": 1,
}

Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Token = Annotated[int, Field(ge=0, le=MAX_SEED)]
Prompt = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
TokenPrompt = Annotated[list[Token], Field(min_length=1, max_length=MAX_PROMPT)]
Gap = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Settings(_Strict):
    """The object `edlm`: how to generate, where it differs from what the model was registered with."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    candidates: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    """k; 1 is plain diffusion, 0 is exact where the energy is normalised."""
    window: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    """[from, to]: steps at a time t in it choose among the candidates."""
    energy_temperature: Annotated[float, Field(gt=0, le=1000)] | None = None
    energy: Annotated[str, Field(max_length=64)] | None = None

    @field_validator("window")
    @classmethod
    def _in_order(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and window[0] > window[1]:
            raise ValueError("window is [from, to] with from <= to")
        return window

    def sampler(self, default: Sampler) -> Sampler:
        """The default with what the request changed."""
        given = {
            "steps": self.steps,
            "candidates": self.candidates,
            "window": None if self.window is None else tuple(self.window),
            "temperature": self.energy_temperature,
        }
        return replace(default, **{name: value for name, value in given.items() if value is not None})


class _Request(_Strict):
    model: Annotated[str, Field(max_length=256)] | None = None
    """The registered model's name, as /v1/models gives it; no other is served."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - MAX_CHOICES)] | None = None
    """Choice i is what seed + i writes alone. None: a random one, which the answer names."""
    edlm: Settings = Settings()
    user: Annotated[str, Field(max_length=256)] | None = None
    """Accepted as OpenAI's clients send it, and not used."""


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: Prompt | TokenPrompt = ""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 16
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool = False
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    presence_penalty: Number | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    suffix: str | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None

    def require_supported(self) -> None:
        """Refused where a field of OpenAI's asks for what this server cannot do."""
        for field, neutral in NEUTRAL.items():
            if getattr(self, field) not in (None, neutral):
                message = f"{field} is not supported yet; leave it out"
                raise Refused(400, message, field, "unsupported_parameter")

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts one by one: OpenAI's list of integers is a single one."""
        if isinstance(self.prompt, list) and isinstance(self.prompt[0], str):
            return self.prompt  # type: ignore[return-value]
        return [self.prompt]  # type: ignore[list-item]


class InfillRequest(_Request):
    """POST /v1/infill: a text with gaps, as tokens or in parts."""

    tokens: Annotated[list[Token | None], Field(min_length=1, max_length=MAX_PROMPT)] | None = None
    """null for each hole."""
    parts: Annotated[list[Text | Gap], Field(min_length=1, max_length=MAX_PARTS)] | None = None
    """Pieces of text, and numbers of tokens to fill in between."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1

    @model_validator(mode="after")
    def _one_of_two(self) -> "InfillRequest":
        return _exactly_one(self, "tokens", "parts")


class ScoreRequest(_Request):
    """POST /v1/score: how likely a text is."""

    text: Text | None = None
    tokens: TokenPrompt | None = None
    draws: Annotated[int, Field(ge=2, le=MAX_DRAWS)] = 16
    """Independent noise samples; the standard errors fall with their root."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "ScoreRequest":
        return _exactly_one(self, "text", "tokens")


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class InfillChoice(BaseModel):
    index: int
    text: str
    tokens: list[int]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Details(BaseModel):
    """The object `edlm` of an answer: what made it, so that it can be made again, and what it took."""

    seed: int
    steps: int
    candidates: int
    window: tuple[float, float]
    energy_temperature: float
    energy: str | None
    """None: nothing was weighed."""
    ess: float | None = None
    """Effective number of candidates, a mean over the steps that had something to choose."""
    denoiser_calls: int | None = None
    energy_calls: int | None = None
    seconds: float
    """From the request to the answer, the wait for other requests included."""
    prompt: list[str] | None = None
    """What was read: a tokenizer may drop capitals or signs."""
    context_tokens: list[int] | None = None
    """How many of the last tokens of each prompt the first canvas showed."""
    model_version: str
    digest: str


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    edlm: Details


class InfillResponse(BaseModel):
    id: str
    object: Literal["infill"] = "infill"
    created: int
    model: str
    choices: list[InfillChoice]
    usage: Usage
    edlm: Details


class Measured(BaseModel):
    nats: float
    standard_error: float


class ScoreResponse(BaseModel):
    id: str
    object: Literal["score"] = "score"
    created: int
    model: str
    tokens: int
    text: str
    """As it was read."""
    nelbo: Measured
    bound: Measured
    energies: dict[str, Measured]
    edlm: Details


def require_affordable(rows: int, blocks: int, length: int, sampler: Sampler) -> int:
    """The denoiser passes that a request may cost; Refused where they are too many."""
    work = rows * blocks * passes(sampler, length)
    if work > MAX_WORK:
        raise Refused(
            400,
            f"the request costs up to {work} passes of the network, and the limit is {MAX_WORK}; "
            "ask for fewer steps, candidates, tokens or choices",
            code="work_limit_exceeded",
        )
    return work


def passes(sampler: Sampler, length: int) -> int:
    """Passes to fill one canvas: a step that reveals nothing costs nothing, so never more steps than positions."""
    resampled = int(sampler.in_window(sampler.times()[1:]).sum())
    share = 0 if sampler.candidates == 1 else ENERGY_SHARE * max(sampler.candidates, 1)
    return min(sampler.steps, length) + round(min(resampled, length) * share)


def _exactly_one(request: Any, *fields: str) -> Any:
    if sum(getattr(request, field) is not None for field in fields) != 1:
        raise ValueError(f"give exactly one of {' and '.join(fields)}")
    return request
