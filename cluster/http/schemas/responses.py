"""What an answer looks like: OpenAI's objects, with one object `edlm` of our own that says what made it."""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: FinishReason | None
    """`stop`: the document or a stop string ended the text; None: it goes on."""
    logprobs: None = None
    token_ids: list[int] | None = None
    """Where `edlm.return` asks for them."""
    revealed_at: list[int] | None = None
    """The step that revealed each token, where `edlm.return` asks for the trajectory."""


class InfillChoice(BaseModel):
    index: int
    text: str
    tokens: list[int]
    finish_reason: FinishReason = "length"
    revealed_at: list[int] | None = None
    """The step that revealed each token, 0 where it was given, where `edlm.return` asks for the trajectory."""


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class GenerationDetails(BaseModel):
    """The object `edlm` of an answer: what made it, so that it can be made again, and what it took."""

    seed: int
    """The request's, or the one that was drawn for it."""
    seeds: list[int] | None = None
    """Of each choice its own: as the `seed` of a request for one text of the same prompt it gives the same text."""
    streams: Literal["independent", "shared"]
    """How those follow from `seed`."""
    steps: int
    candidates: int
    window: tuple[float, float]
    energy_temperature: float
    energy: str | None
    """None: nothing was weighed."""
    temperature: float
    """Of the tokens."""
    law: Literal["another law"] | None
    """`another law` where the temperature is not 1: the model's bounds are not those of these texts."""
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
    best_of_energies: list[list[float | None]] | None = None
    """Of best_of, for each prompt: the energy a token of every text that was written, in the order of writing."""
    model_version: str
    digest: str
    ignored: list[str]
    """Fields of the request that this server does not know; they changed nothing."""


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    """The version and the digest of the model that answered."""
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
    """As it was read."""
    nelbo: PromptScore
    bound: PromptScore
    energies: dict[str, PromptScore]


class TokenizeResponse(BaseModel):
    tokens: list[int]
    pieces: list[str]
    """Each token's own text; part of a character is shown as the replacement character."""
    count: int


class DetokenizeResponse(BaseModel):
    text: str


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "edlm"
    edlm: dict[str, Any]
    """Version, digest, canvas, energies, and how it generates unless told otherwise."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


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


class Mistake(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """Every request that is not answered gets this."""

    error: Mistake
