"""Request schemas: OpenAI completions with an additional object `edlm`, and endpoints that OpenAI does not have."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from cluster.http.errors import APIError
from cluster.http.schemas.constraints import ConstraintFields, ConstraintSettings, RequestedConstraint, single
from cluster.http.schemas.field_types import (
    MAX_PROMPT,
    MAX_TOKENS,
    NOT_EMPTY,
    Body,
    OnePrompt,
    Part,
    Prompt,
    Stop,
    Text,
    Token,
    Tokens,
)
from cluster.http.unsupported_fields import NEUTRAL, OF_COMPLETIONS, ignored
from edlm.config import ConfigurationError
from edlm.inference.settings import LEAST_SEED, MAX_SEED, overridden
from edlm.inference.token_temperature import LEAST_TOKEN_TEMPERATURE, MOST_TOKEN_TEMPERATURE
from edlm.sampling.sampler import LEAST_TEMPERATURE, Sampler

MAX_PARTS = 64
MAX_STEPS = 1024
MAX_CANDIDATES = 64
MAX_DRAWS = 64
MAX_STOP_LETTERS = 2**12  # of all stop strings together: each is searched for at every step
MAX_SECONDS = 3600
MAX_LOGPROBS = 20  # as in vLLM

Streams = Literal["independent", "shared"]
Count = Annotated[int, Field(ge=1)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class SamplerSettings(Body):
    """The object `edlm`: generation settings that override those registered with the model."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """T, the number of steps. Default: the model's."""
    candidates: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    """k; 1 is plain diffusion, 0 is exact sampling, for normalised energies."""
    window: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    """[from, to]: steps at a time t in this window choose among the candidates."""
    energy_temperature: Annotated[float, Field(ge=LEAST_TEMPERATURE, le=1000)] | None = None
    """tau of the importance weights exp(-E / tau). Default: the model's."""
    energy: Annotated[str, Field(max_length=64)] | None = None
    """Name of an energy of the model. Default: the model's."""
    timeout_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    """Timeout of the request; the server has its own limit."""
    return_: Annotated[list[Literal["token_ids", "trajectory"]], Field(alias="return", max_length=2)] = Field(
        default_factory=list
    )
    """Additional fields of a choice: `token_ids`; `trajectory`, the step that unmasked each token."""
    streams: Streams | None = None
    """Random streams of several texts. `shared`: text i of each prompt has the seed `seed + i`, default with a seed;
    `independent`: each text has its own seed, default without one."""
    constraint: ConstraintSettings | None = None
    """What a completion is to satisfy, or the whole text of an infill."""

    @field_validator("window")
    @classmethod
    def _in_order(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and window[0] > window[1]:
            raise ValueError("window is [from, to] with from <= to")
        return window

    def sampler(self, default: Sampler) -> Sampler:
        """Return `default` with the overrides of the request; a grid fitted to another number of steps is dropped.

        Raise APIError if exact sampling is combined with an energy temperature other than 1.
        """
        window = None if self.window is None else (self.window[0], self.window[1])
        try:
            return overridden(
                default,
                steps=self.steps,
                candidates=self.candidates,
                window=window,
                energy_temperature=self.energy_temperature,
            )
        except ConfigurationError as error:  # single values are valid here: only the combination is wrong
            raise APIError(400, str(error), "edlm.energy_temperature", "invalid_value") from None


class StreamOptions(Body, extra="allow"):
    """Additional contents of a stream."""

    include_usage: bool = False
    """End the stream with a chunk that has the usage."""
    continuous_usage_stats: bool = False
    """With include_usage: report the tokens so far in every chunk."""
    include_obfuscation: bool = False
    """Accepted as OpenAI's clients send it, and not used."""
    denoising: bool | None = None
    """Stream the denoising states of the canvas. Default: on for infills, off for completions."""
    candidate_tokens: bool = False
    """With `denoising: true`: the states also hold the tokens of the candidates among which steps chose."""


class _Request(Body, extra="allow"):
    model: Annotated[str, Field(max_length=256)] | None = None
    """Name of the registered model, as listed by /v1/models; no other model is served."""
    seed: Annotated[int, Field(ge=LEAST_SEED, le=MAX_SEED)] | None = None
    """Seed of the first text. None: random. The response reports the seed of every text."""
    edlm: SamplerSettings = SamplerSettings()
    """Settings of the sampler."""
    user: str | None = None
    """Accepted as OpenAI's clients send it, and not used."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the unknown fields, which are ignored. Raise APIError if a field would change the text."""
        return ignored(self.model_extra or {}, self.neutral)

    @property
    def streams(self) -> Streams:
        """Random streams of several texts, with the default resolved."""
        return self.edlm.streams or ("independent" if self.seed is None else "shared")


class GenerationRequest(_Request):
    """Fields of every request for texts."""

    n: Count = 1
    """Number of texts per prompt."""
    temperature: Annotated[float, Field(ge=0, le=MOST_TOKEN_TEMPERATURE)] = 1.0
    """Token temperature: each token is drawn from p^(1/temperature); 0 selects the most likely token. Any value but 1
    changes the distribution, and the model's bounds do not apply to it. Values between 0 and 0.01 are raised to 0.01,
    as in vLLM."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Draw each token from this number of likeliest ones; -1 or 0: from all. Any other value changes the distribution,
    as a temperature does."""
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Draw each token from the fewest likeliest ones that have this probability together, after `top_k`; 1: from all.
    Any other value changes the distribution, as a temperature does."""
    stream: bool = False
    """Send server-sent events instead of one response."""
    stream_options: StreamOptions | None = None
    """Options of the stream; only with `stream`."""

    @field_validator("temperature")
    @classmethod
    def _drawn_at(cls, temperature: float) -> float:
        return LEAST_TOKEN_TEMPERATURE if 0 < temperature < LEAST_TOKEN_TEMPERATURE else temperature

    @property
    def ignored(self) -> tuple[str, ...]:
        options = self.stream_options
        unknown = () if options is None else ignored(options.model_extra or {}, {})
        names = [f"stream_options.{name}" for name in unknown]
        if self.edlm.constraint is not None:
            names += [f"edlm.constraint.{name}" for name in self.edlm.constraint.without_effect]
        return (*super().ignored, *names)

    @property
    def constraint(self) -> RequestedConstraint | None:
        """What the texts are to satisfy, None for any text. Raise APIError for several constraints, or a wrong one."""
        return single(self._constraints())

    def _constraints(self) -> list[RequestedConstraint]:
        return [] if self.edlm.constraint is None else self.edlm.constraint.given("edlm.constraint")

    @property
    def likeliest(self) -> int | None:
        """`top_k`; None if it truncates nothing."""
        return self.top_k if self.top_k > 0 else None

    @property
    def reports_candidates(self) -> bool:
        """Whether the stream reports the tokens of candidates."""
        return self.stream_options is not None and self.stream_options.candidate_tokens

    @property
    def texts(self) -> int:
        """Number of texts to generate."""
        return self.n

    @property
    def plural(self) -> str:
        """The field that contributes most to the number of texts."""
        return "n"

    def require_consistent(self) -> None:
        """Raise APIError if fields that are valid by themselves are inconsistent with one another."""
        if self.stream_options is not None and not self.stream:
            raise APIError(400, "stream_options requires stream: true", "stream_options", "invalid_value")
        if self.reports_candidates and not (self.stream_options and self.stream_options.denoising):
            name = "stream_options.candidate_tokens"
            message = f"{name} is part of the denoising states; give stream_options.denoising: true as well"
            raise APIError(400, message, name, "invalid_value")
        if (constraint := self.constraint) is not None:
            self._require_constrainable(constraint)

    def _require_constrainable(self, constraint: RequestedConstraint) -> None:
        """Raise APIError if a field does not combine with a constraint."""
        for field, truncates in (("top_k", self.likeliest is not None), ("top_p", self.top_p < 1)):
            if truncates:
                raise constraint.conflict(
                    field, "leaves each token a few likely ones, which may exclude every text", "use temperature"
                )


class ContinuationRequest(GenerationRequest, ConstraintFields):
    """Fields of requests for texts that continue a prompt."""

    stop: Stop | None = None
    """Stop strings: the text ends before the first of them. In a constrained text, none of them occurs."""

    def require_consistent(self) -> None:
        """Raise APIError if a stop string is invalid, or fields are inconsistent with one another."""
        super().require_consistent()
        if "" in self.stops:
            raise APIError(400, "an empty stop would end every text; leave it out", "stop", "invalid_value")
        if (letters := sum(map(len, self.stops))) > MAX_STOP_LETTERS:
            message = f"the stop strings have {letters} characters in all; at most {MAX_STOP_LETTERS} are allowed"
            raise APIError(400, message, "stop", "invalid_value")

    @property
    def ignored(self) -> tuple[str, ...]:
        return (*super().ignored, *self.ignored_in_constraints)

    def _constraints(self) -> list[RequestedConstraint]:
        return [*super()._constraints(), *self.constraints_in_fields()]

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple, without duplicates."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(dict.fromkeys(self.stop))


class CompletionRequest(ContinuationRequest):
    """POST /v1/completions."""

    prompt: Prompt = ""
    """A text, a list of token ids, or a list of either."""
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 16
    """Maximum number of tokens per text. 0 generates nothing: with `echo`, the text is the prompt."""
    best_of: Count | None = None
    """Generate this many texts and return the n of lowest energy per token, as in /v1/score. 1 has no effect."""
    echo: bool = False
    """Begin each text with its prompt, as tokenized."""
    logprobs: Logprobs | None = None
    """Return log p of every token and of this number of likeliest ones; with `echo`, also of the prompt's tokens."""
    suffix: Text | None = None
    """Text that follows the completion; prompt, max_tokens and suffix share one canvas."""

    def require_consistent(self) -> None:
        """Raise APIError if a field asks for something unsupported, or fields are inconsistent with one another."""
        super().require_consistent()
        if self.best_of is None:
            return
        if self.best_of < self.n:
            message = f"best_of is {self.best_of}; it must be at least n = {self.n}"
            raise APIError(400, message, "best_of", "invalid_value")
        if self.stream and self.ranked:
            raise APIError(400, "best_of compares finished texts; leave out stream", "best_of", "invalid_value")

    def _require_constrainable(self, constraint: RequestedConstraint) -> None:
        super()._require_constrainable(constraint)
        if self.suffix is not None:
            raise constraint.conflict("suffix", "belongs to the text as well", "send all of it to /v1/infill")
        if self.max_tokens == 0:
            raise constraint.conflict("max_tokens", "is 0, which generates no text", "ask for as many as it takes")

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts as a list; in OpenAI's format a list of integers is a single prompt."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]  # type: ignore[return-value]

    @property
    def scores_prompts(self) -> bool:
        """Whether the response holds the log-probabilities of the prompts' tokens."""
        return self.echo and self.logprobs is not None

    @property
    def ranked(self) -> bool:
        """Whether texts are ranked by energy: `best_of` above 1."""
        return self.best_of is not None and self.best_of > 1

    @property
    def rows(self) -> int:
        """Number of texts to generate per prompt."""
        return self.best_of or self.n

    @property
    def texts(self) -> int:
        return len(self.prompts) * self.rows

    @property
    def plural(self) -> str:
        if len(self.prompts) > self.rows:
            return "prompt"
        return "n" if self.best_of is None else "best_of"


class InfillRequest(GenerationRequest):
    """POST /v1/infill: a text with gaps, as tokens or as parts."""

    tokens: Annotated[list[Token | None], Field(min_length=1, max_length=MAX_PROMPT)] | None = None
    """Token ids, with null at each position to fill."""
    parts: Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)] | None = None
    """Pieces of text, and the numbers of tokens to fill between them."""

    alternatives: ClassVar[tuple[str, ...]] = ("tokens", "parts")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **NEUTRAL, "best_of": (1,), "echo": (False,), "logprobs": (), "max_tokens": (), "prompt": (), "stop": ([],),
        "suffix": (), **OF_COMPLETIONS,
    }  # fmt: skip


class ScoreRequest(_Request):
    """POST /v1/score: likelihood bounds and energies of a text."""

    text: Annotated[Text, Field(json_schema_extra=NOT_EMPTY)] | None = None
    """Text to score; give it or `tokens`."""
    tokens: Tokens | None = None
    """Token ids to score."""
    prompt: OnePrompt | None = None
    """Text or token ids before the text, on the same canvas: the text is scored given the prompt."""
    draws: Annotated[int, Field(ge=2, le=MAX_DRAWS)] = 16
    """Number of independent noise samples; standard errors fall with its square root."""
    exact_order: bool = False
    """Also return -log p, exact, of another distribution: this sampler, but unmasking the most certain positions first
    in fixed counts. For candidates 1, and for 0 with an energy of a step's tokens."""

    alternatives: ClassVar[tuple[str, ...]] = ("text", "tokens")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **NEUTRAL, "logprobs": (), "temperature": (1,), "top_k": (-1, 0), "top_p": (1,), **OF_COMPLETIONS,
    }  # fmt: skip
