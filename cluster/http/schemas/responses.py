"""Response schemas: OpenAI's objects with an additional object `edlm` for reproducing the result."""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: FinishReason | None
    """`stop`: the document ended or a stop string was generated; None: the text continues."""
    logprobs: None = None
    token_ids: list[int] | None = None
    """Present if `edlm.return` includes `token_ids`."""
    unmasked_at: list[int] | None = None
    """Step that unmasked each token; present if `edlm.return` includes `trajectory`."""


class InfillChoice(BaseModel):
    index: int
    text: str
    tokens: list[int]
    finish_reason: FinishReason = "length"
    unmasked_at: list[int] | None = None
    """Step that unmasked each token, 0 for given tokens; present if `edlm.return` includes `trajectory`."""


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class GenerationDetails(BaseModel):
    """The object `edlm` of a response: what is needed to reproduce it, and its cost."""

    seed: int
    """Seed of the request, or the random one drawn for it."""
    seeds: list[int] | None = None
    """Seed of each choice; a request for one text of the same prompt with this `seed` reproduces the text."""
    streams: Literal["independent", "shared"]
    """How `seeds` are derived from `seed`."""
    steps: int
    candidates: int
    window: tuple[float, float]
    energy_temperature: float
    energy: str | None
    """Energy that scored the candidates; None: no resampling."""
    temperature: float
    """Token temperature."""
    distribution: Literal["another distribution"] | None
    """`another distribution` if the temperature is not 1: the model's bounds do not apply to these texts."""
    ess: float | None = None
    """Mean effective number of candidates over the steps that resampled."""
    denoiser_calls: int | None = None
    energy_calls: int | None = None
    seconds: float
    """From request to response, including the time queued behind other requests."""
    prompt: list[str] | None = None
    """Prompts as tokenized and decoded: a tokenizer may drop capitals or symbols."""
    context_tokens: list[int] | None = None
    """Number of trailing prompt tokens visible in the first canvas, per prompt."""
    best_of_energies: list[list[float | None]] | None = None
    """With best_of, per prompt: energy per token of every generated text, in order of generation."""
    model_version: str
    digest: str
    ignored: list[str]
    """Request fields unknown to this server, which had no effect."""


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    """Version and digest of the model that generated the response."""
    edlm: GenerationDetails


class CompletionResponse(_Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: TokenUsage


class InfillResponse(_Answer):
    object: Literal["infill"] = "infill"
    choices: list[InfillChoice]
    usage: TokenUsage


class PromptScore(BaseModel):
    nats: float
    standard_error: float


class ScoreResponse(_Answer):
    object: Literal["score"] = "score"
    tokens: int
    text: str
    """The text as tokenized and decoded."""
    nelbo: PromptScore
    bound: PromptScore
    energies: dict[str, PromptScore]


class TokenizeResponse(BaseModel):
    tokens: list[int]
    pieces: list[str]
    """Text of each token; partial characters are shown as the replacement character."""
    count: int


class DetokenizeResponse(BaseModel):
    text: str


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "edlm"
    edlm: dict[str, Any]
    """Version, digest, canvas length, special tokens, energies and default sampler."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Version(BaseModel):
    version: str


class Readiness(BaseModel):
    status: Literal["ready"] = "ready"
    model: str
    model_version: str
    digest: str
    warm: bool
    alive: bool
    beat_age_seconds: float
    backlog_seconds: float


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Error response."""

    error: ErrorDetail
