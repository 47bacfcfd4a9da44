"""What a request may say: OpenAI's completions, with one object `edlm` of our own, and what OpenAI has no word for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.http.refusal import Refused
from edlm.sampler import EXACT, LEAST_TEMPERATURE, Sampler

MAX_PROMPT = 2**16  # characters or tokens; of a longer one than the canvas the end is read
MAX_PROMPTS = 8
MAX_PARTS = 64
MAX_CHOICES = 8
MAX_TOKENS = 4096
MAX_STEPS = 1024
MAX_CANDIDATES = 64
MAX_DRAWS = 64
MAX_STOPS = 4
MAX_STOP_LETTERS = 64
MAX_SECONDS = 3600
MAX_SEED = 2**53 - 1  # what every reader of JSON keeps exactly

# OpenAI's fields that this server does not act on, with the value that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": None,
    "presence_penalty": 0,
    "temperature": 1,
    "top_p": 1,
}

Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Token = Annotated[int, Field(ge=0, le=MAX_SEED)]
Prompt = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
TokenPrompt = Annotated[list[Token], Field(min_length=1, max_length=MAX_PROMPT)]
Gap = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Stop = Annotated[str, Field(max_length=MAX_STOP_LETTERS)]
Number = Annotated[float, Field(allow_inf_nan=False)]
# The most is told in the document and checked by hand: one more is OpenAI's 400, not a 422.
Choices = Annotated[int, Field(ge=1, json_schema_extra={"maximum": MAX_CHOICES})]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Settings(_Strict):
    """The object `edlm`: how to generate, where it differs from what the model was registered with."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    candidates: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    """k; 1 is plain diffusion, 0 is exact where the energy is normalised."""
    window: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    """[from, to]: steps at a time t in it choose among the candidates."""
    energy_temperature: Annotated[float, Field(ge=LEAST_TEMPERATURE, le=1000)] | None = None
    energy: Annotated[str, Field(max_length=64)] | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    """After this time the request is ended; the server has a limit of its own."""
    return_: Annotated[list[Literal["token_ids", "trajectory"]], Field(alias="return", max_length=2)] = []
    """What a choice shows beside its text: its token ids; for each of them the step that revealed it."""

    @field_validator("window")
    @classmethod
    def _in_order(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and window[0] > window[1]:
            raise ValueError("window is [from, to] with from <= to")
        return window

    def sampler(self, default: Sampler) -> Sampler:
        """The default with what the request changed. Times that were fitted to other steps are not kept.

        Refused where exact draws are to have another temperature than 1.
        """
        given = {
            "steps": self.steps,
            "candidates": self.candidates,
            "window": None if self.window is None else tuple(self.window),
            "temperature": self.energy_temperature,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        if self.steps not in (None, default.steps):
            changed["grid"] = None
        if self.candidates not in (None, default.candidates):
            changed["speculative"] = False
        if changed.get("candidates", default.candidates) == EXACT:
            if self.energy_temperature not in (None, 1.0):
                what = f"candidates = 0 draws exactly, at temperature 1; got {self.energy_temperature:g}"
                raise Refused(400, f"{what}: leave it out, or ask for k >= 1", "edlm.energy_temperature")
            changed["temperature"] = 1.0
        return replace(default, **changed)


class StreamOptions(_Strict):
    """What a stream shows beside its text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted as OpenAI's clients send it, and not used."""
    denoising: bool | None = None
    """The states of the canvas on its way. Left out: an infill shows them, a completion does not."""


class _Request(_Strict):
    model: Annotated[str, Field(max_length=256)] | None = None
    """The registered model's name, as /v1/models gives it; no other is served."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED - MAX_CHOICES)] | None = None
    """Text i of each prompt, from 0, is what seed + i writes alone. None: a random one, which the answer names."""
    edlm: Settings = Settings()
    user: Annotated[str, Field(max_length=256)] | None = None
    """Accepted as OpenAI's clients send it, and not used."""


class _Stream(_Request):
    n: Choices = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    def require_consistent(self) -> None:
        """Refused where fields that are right by themselves do not go together."""
        if self.n > MAX_CHOICES:
            raise Refused(400, f"n is {self.n}; at most {MAX_CHOICES} are written at once", "n", "invalid_value")
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options is for stream: true", "stream_options", "invalid_value")


class CompletionRequest(_Stream):
    """POST /v1/completions."""

    prompt: Prompt | TokenPrompt = ""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 16
    best_of: Choices | None = None
    """Write so many, and show the n of lowest energy (a token, as /v1/score measures it)."""
    echo: bool = False
    """Begin each text with its prompt, as it was read."""
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    """The text ends before the first of these."""
    suffix: Text | None = None
    """What stands behind the text: prompt, max_tokens and suffix share one canvas."""
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    presence_penalty: Number | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None

    def require_consistent(self) -> None:
        """Refused where a field asks for what this server cannot do, or two of them do not go together."""
        super().require_consistent()
        for field, neutral in NEUTRAL.items():
            if getattr(self, field) not in (None, neutral):
                raise Refused(400, f"{field} is not supported; leave it out", field, "unsupported_parameter")
        if "" in self.stops:
            raise Refused(400, "an empty stop would end every text; leave it out", "stop", "invalid_value")
        if self.best_of is None:
            return
        if not self.n <= self.best_of <= MAX_CHOICES:
            message = f"best_of is {self.best_of}; it must be at least n = {self.n} and at most {MAX_CHOICES}"
            raise Refused(400, message, "best_of", "invalid_value")
        if self.stream:
            raise Refused(400, "best_of compares finished texts; leave out stream", "best_of", "invalid_value")

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts one by one: OpenAI's list of integers is a single one."""
        if isinstance(self.prompt, list) and isinstance(self.prompt[0], str):
            return self.prompt  # type: ignore[return-value]
        return [self.prompt]  # type: ignore[list-item]

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, none or one or several."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class InfillRequest(_Stream):
    """POST /v1/infill: a text with gaps, as tokens or in parts."""

    tokens: Annotated[list[Token | None], Field(min_length=1, max_length=MAX_PROMPT)] | None = None
    """null for each hole."""
    parts: Annotated[list[Text | Gap], Field(min_length=1, max_length=MAX_PARTS)] | None = None
    """Pieces of text, and numbers of tokens to fill in between."""

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


class TokenizeRequest(_Strict):
    """POST /v1/tokenize."""

    text: Text
    model: Annotated[str, Field(max_length=256)] | None = None


class DetokenizeRequest(_Strict):
    """POST /v1/detokenize."""

    tokens: Annotated[list[Token], Field(max_length=MAX_PROMPT)]
    model: Annotated[str, Field(max_length=256)] | None = None


def _exactly_one(request: Any, *fields: str) -> Any:
    if sum(getattr(request, field) is not None for field in fields) != 1:
        raise ValueError(f"give exactly one of {' and '.join(fields)}")
    return request
