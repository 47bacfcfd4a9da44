"""What a request may say: OpenAI's completions, with one object `edlm` of our own, and what OpenAI has no word for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cluster.http.errors import APIError
from cluster.http.foreign import NEUTRAL, ignored
from cluster.http.forms import MAX_PROMPT, MAX_TOKENS, Body, Part, Prompt, Stop, Text, Token, Tokens
from edlm.inference.tempering import LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE
from edlm.sampling.sampler import EXACT, LEAST_TEMPERATURE, Sampler

MAX_PARTS = 64
MAX_STEPS = 1024
MAX_CANDIDATES = 64
MAX_DRAWS = 64
MAX_STOP_LETTERS = 2**12  # of all stop strings together: each is looked for at every step
MAX_SECONDS = 3600
LEAST_SEED, MAX_SEED = -(2**63), 2**63 - 1

Streams = Literal["independent", "shared"]
Choices = Annotated[int, Field(ge=1)]


class Settings(Body):
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
    return_: Annotated[list[Literal["token_ids", "trajectory"]], Field(alias="return", max_length=2)] = Field(
        default_factory=list
    )
    """What a choice shows beside its text: its token ids; for each of them the step that revealed it."""
    streams: Streams | None = None
    """Where the randomness of several texts comes from. `shared`: text i of each prompt has the seed `seed + i`, the
    default where a seed was given; `independent`: each text has one of its own, the default where none was."""

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
            "energy_temperature": self.energy_temperature,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        if self.steps not in (None, default.steps):
            changed["grid"] = None
        if self.candidates not in (None, default.candidates):
            changed["speculative"] = False
        if changed.get("candidates", default.candidates) == EXACT:
            if self.energy_temperature not in (None, 1.0):
                what = f"candidates = 0 draws exactly, at temperature 1; got {self.energy_temperature:g}"
                raise APIError(400, f"{what}: leave it out, or ask for k >= 1", "edlm.energy_temperature")
            changed["energy_temperature"] = 1.0
        return replace(default, **changed)


class StreamOptions(Body, extra="allow"):
    """What a stream shows beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    """With include_usage: every piece tells the tokens up to now."""
    include_obfuscation: bool = False
    """Accepted as OpenAI's clients send it, and not used."""
    denoising: bool | None = None
    """The states of the canvas on its way. Left out: an infill shows them, a completion does not."""


class _Request(Body, extra="allow"):
    model: Annotated[str, Field(max_length=256)] | None = None
    """The registered model's name, as /v1/models gives it; no other is served."""
    seed: Annotated[int, Field(ge=LEAST_SEED, le=MAX_SEED)] | None = None
    """What the first text is written from. None: a random one. The answer names the seed of every text."""
    edlm: Settings = Settings()
    user: str | None = None
    """Accepted as OpenAI's clients send it, and not used."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL

    @property
    def ignored(self) -> tuple[str, ...]:
        """The names of the fields that change nothing here. Refused where one would change the text."""
        return ignored(self.model_extra or {}, self.neutral)

    @property
    def streams(self) -> Streams:
        """Where the randomness of several texts comes from."""
        return self.edlm.streams or ("independent" if self.seed is None else "shared")


class _Stream(_Request):
    n: Choices = 1
    temperature: Annotated[float, Field(ge=0, le=MOST_TOKEN_TEMPERATURE)] = 1.0
    """Of the tokens: each is drawn from p^(1/temperature), and at 0 it is the likeliest. Anything but 1 is another law
    than the model's, of which no bound is told. Between 0 and 0.01 there is none."""
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        options = self.stream_options
        more = () if options is None else ignored(options.model_extra or {}, {})
        return (*super().ignored, *(f"stream_options.{name}" for name in more))

    @property
    def texts(self) -> int:
        """How many are written."""
        return self.n

    @property
    def plural(self) -> str:
        """The field that asks for the most of them."""
        return "n"

    def require_consistent(self) -> None:
        """Refused where fields that are right by themselves do not go together."""
        if 0 < self.temperature < LEAST_TOKEN_TEMPERATURE:
            what = f"temperature is {self.temperature:g}; give 0, where each token is the likeliest"
            raise APIError(400, f"{what}, or at least {LEAST_TOKEN_TEMPERATURE}", "temperature", "invalid_value")
        if self.stream_options is not None and not self.stream:
            raise APIError(400, "stream_options is for stream: true", "stream_options", "invalid_value")


class CompletionRequest(_Stream):
    """POST /v1/completions."""

    prompt: Prompt = ""
    """A text, or the ids of its tokens; or a list of either."""
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 16
    """At least 1."""
    best_of: Choices | None = None
    """Write so many, and show the n of lowest energy (a token, as /v1/score measures it). 1 asks for nothing."""
    echo: bool = False
    """Begin each text with its prompt, as it was read."""
    stop: Stop | None = None
    """The text ends before the first of these."""
    suffix: Text | None = None
    """What stands behind the text: prompt, max_tokens and suffix share one canvas."""

    def require_consistent(self) -> None:
        """Refused where a field asks for what this server cannot do, or two of them do not go together."""
        super().require_consistent()
        if self.max_tokens == 0:
            message = "max_tokens is 0, which writes nothing; ask for 1 or more, or /v1/score for bounds"
            raise APIError(400, message, "max_tokens", "invalid_value")
        if "" in self.stops:
            raise APIError(400, "an empty stop would end every text; leave it out", "stop", "invalid_value")
        if (letters := sum(map(len, self.stops))) > MAX_STOP_LETTERS:
            message = f"the stop strings have {letters} characters together; at most {MAX_STOP_LETTERS} are looked for"
            raise APIError(400, message, "stop", "invalid_value")
        if self.best_of is None:
            return
        if self.best_of < self.n:
            message = f"best_of is {self.best_of}; it must be at least n = {self.n}"
            raise APIError(400, message, "best_of", "invalid_value")
        if self.stream and self.ranked:
            raise APIError(400, "best_of compares finished texts; leave out stream", "best_of", "invalid_value")

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts one by one: OpenAI's list of integers is a single one."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]  # type: ignore[return-value]

    @property
    def ranked(self) -> bool:
        """Whether more are written than shown, or all are shown in the order of their energies."""
        return self.best_of is not None and self.best_of > 1

    @property
    def rows(self) -> int:
        """How many texts are written of each prompt."""
        return self.best_of or self.n

    @property
    def texts(self) -> int:
        return len(self.prompts) * self.rows

    @property
    def plural(self) -> str:
        if len(self.prompts) > self.rows:
            return "prompt"
        return "n" if self.best_of is None else "best_of"

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, none or one or several."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(dict.fromkeys(self.stop))


class InfillRequest(_Stream):
    """POST /v1/infill: a text with gaps, as tokens or in parts."""

    tokens: Annotated[list[Token | None], Field(min_length=1, max_length=MAX_PROMPT)] | None = None
    """null for each hole."""
    parts: Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)] | None = None
    """Pieces of text, and numbers of tokens to fill in between."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **NEUTRAL, "best_of": (1,), "echo": (False,), "max_tokens": (), "prompt": (), "stop": ([],), "suffix": (),
    }  # fmt: skip

    @model_validator(mode="after")
    def _one_of_two(self) -> "InfillRequest":
        return _exactly_one(self, "tokens", "parts")


class ScoreRequest(_Request):
    """POST /v1/score: how likely a text is."""

    text: Text | None = None
    tokens: Tokens | None = None
    draws: Annotated[int, Field(ge=2, le=MAX_DRAWS)] = 16
    """Independent noise samples; the standard errors fall with their root."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {**NEUTRAL, "temperature": (1,)}

    @model_validator(mode="after")
    def _one_of_two(self) -> "ScoreRequest":
        return _exactly_one(self, "text", "tokens")


class TokenizeRequest(Body):
    """POST /v1/tokenize."""

    text: Text
    model: Annotated[str, Field(max_length=256)] | None = None


class DetokenizeRequest(Body):
    """POST /v1/detokenize."""

    tokens: Annotated[list[Token], Field(max_length=MAX_PROMPT)]
    model: Annotated[str, Field(max_length=256)] | None = None


def _exactly_one(request: Any, *fields: str) -> Any:
    if sum(getattr(request, field) is not None for field in fields) != 1:
        raise ValueError(f"give exactly one of {' and '.join(fields)}")
    return request
