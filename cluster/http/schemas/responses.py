"""Response schemas: OpenAI's objects with an additional object `edlm` for reproducing the result."""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class _Schema(BaseModel, use_attribute_docstrings=True):
    """Response whose fields are described by the docstrings below them."""


class CompletionLogprobs(_Schema):
    tokens: list[str]
    """Text of each token; partial characters are shown as the replacement character."""
    token_logprobs: list[float]
    """log p of each token, in nats. `edlm.logprobs` names their distribution."""
    top_logprobs: list[dict[str, float]]
    """The likeliest tokens in the place of each, and the token itself, with their log p."""
    text_offset: list[int]
    """Sum of the lengths of the tokens' texts before each."""


class RankedToken(_Schema):
    token: str
    """Text of the token; partial characters are shown as the replacement character."""
    logprob: float
    """log p of the token, in nats. `edlm.logprobs` names its distribution."""
    bytes: list[int]
    """UTF-8 of `token`."""


class TokenWithLogprob(RankedToken):
    top_logprobs: list[RankedToken]
    """The likeliest tokens in its place."""


class ChatLogprobs(_Schema):
    content: list[TokenWithLogprob]
    """The tokens of the message."""
    refusal: None = None
    """Always null."""


class LogprobsDetails(_Schema):
    generated: Literal["p_theta"] = "p_theta"
    """log p of a generated token is log p_theta at the step that unmasked it, given the canvas of that step, whatever
    the energy, temperature or truncation. The sum is no log-likelihood of the text: /v1/score has bounds."""
    prompt: Literal["left_to_right"] | None
    """log p of a token of the prompt, with `echo`: exact, given the tokens before it, of the sampler that unmasks one
    position per step from the left. The sum is the log-likelihood under this sampler."""
    prompt_distribution: Literal["another distribution"] | None
    """It is not the distribution of the texts that this endpoint generates."""


class CompletionChoice(_Schema):
    index: int
    """Number of the text: prompts in order, and `n` texts per prompt."""
    text: str
    """Text after the prompt; with `echo`, the prompt and it. In a stream, the next part of it."""
    finish_reason: FinishReason | None
    """`stop`: the document ended or a stop string was generated; None: the text continues."""
    logprobs: CompletionLogprobs | None = None
    """Log-probabilities of the tokens, with `echo` of those of the prompt, too; if the request asks for them. In a
    stream those of the tokens of this part of the text."""
    token_ids: list[int] | None = None
    """Present if `edlm.return` includes `token_ids`."""
    unmasked_at: list[int] | None = None
    """Step that unmasked each token; present if `edlm.return` includes `trajectory`."""


class AssistantMessage(_Schema):
    role: Literal["assistant"] = "assistant"
    """Always `assistant`."""
    content: str
    """What the message says."""


class ChatChoice(_Schema):
    index: int
    """Number of the message, of `n`."""
    message: AssistantMessage
    """The message. In a stream, `delta` is its next part, with the role in the first one."""
    finish_reason: FinishReason
    """`stop`: the message ended or a stop string was generated."""
    logprobs: ChatLogprobs | None = None
    """Log-probabilities of the tokens, if the request asks for them; in a stream, with the end of the message."""
    token_ids: list[int] | None = None
    """Present if `edlm.return` includes `token_ids`."""
    unmasked_at: list[int] | None = None
    """Step that unmasked each token; present if `edlm.return` includes `trajectory`."""


class InfillChoice(_Schema):
    index: int
    """Number of the text, of `n`."""
    text: str
    """The whole text, given parts included."""
    tokens: list[int]
    """Its token ids."""
    finish_reason: FinishReason = "length"
    """Always `length`: the gaps have a fixed size."""
    unmasked_at: list[int] | None = None
    """Step that unmasked each token, 0 for given tokens; present if `edlm.return` includes `trajectory`."""


class TokenUsage(_Schema):
    prompt_tokens: int
    """Tokens of the prompts, or given tokens of an infill."""
    completion_tokens: int
    """Generated tokens."""
    total_tokens: int
    """Sum of both."""


class ConstraintDetails(_Schema):
    field: str
    """Field of the request that constrains the texts."""
    kind: Literal["regex", "choice", "json_schema"]
    """What it is: a regular expression, choices, or a JSON schema (an object's is `{"type": "object"}`)."""


class GenerationDetails(_Schema):
    """The object `edlm` of a response: what is needed to reproduce it, and its cost."""

    seed: int
    """Seed of the request, or the random one drawn for it."""
    seeds: list[int] | None = None
    """Seed of each choice; a request for one text of the same prompt with this `seed` reproduces the text."""
    streams: Literal["independent", "shared"]
    """How `seeds` are derived from `seed`."""
    steps: int
    """T, the number of steps per canvas."""
    candidates: int
    """k, the number of candidates per step; 1: plain diffusion, 0: exact sampling of a normalised energy."""
    window: tuple[float, float]
    """[from, to]: interval of times t in which steps choose among candidates."""
    energy_temperature: float
    """tau of the importance weights exp(-E / tau)."""
    energy: str | None
    """Energy that scored the candidates; None: no resampling."""
    temperature: float
    """Token temperature, which is 0.01 for a request of less than that and more than 0."""
    top_k: int | None
    """Number of likeliest tokens that each token was drawn from; None: all."""
    top_p: float
    """Probability of the nucleus that each token was drawn from; 1: all tokens."""
    constraint: ConstraintDetails | None
    """What every text satisfies; None: any text."""
    distribution: Literal["another distribution"] | None
    """`another distribution` if the temperature is not 1, or the distributions are truncated: the model's bounds do not
    apply to these texts."""
    ess: float | None = None
    """Mean effective number of candidates over the steps that resampled."""
    denoiser_calls: int | None = None
    """Passes of the denoiser, summed over the texts."""
    energy_calls: int | None = None
    """Candidates that the energy scored, or passes of exact sampling, summed over the texts."""
    seconds: float
    """From request to response, including the time queued behind other requests."""
    prompt: list[str] | None = None
    """Prompts as tokenized and decoded: a tokenizer may drop capitals or symbols."""
    context_tokens: list[int] | None = None
    """Number of trailing prompt tokens visible in the first canvas, per prompt."""
    best_of_energies: list[list[float | None]] | None = None
    """With best_of, per prompt: energy per token of every generated text, in order of generation."""
    model_version: str
    """Number of the version in the model registry."""
    digest: str
    """SHA-256 of the model's files."""
    logprobs: LogprobsDetails | None = None
    """What the log-probabilities of the choices are; None: there are none."""
    ignored: list[str]
    """Request fields unknown to this server, which had no effect."""


class _Answer(_Schema):
    id: str
    """Random id of the response."""
    created: int
    """Time of the response, in seconds since 1970 (UTC)."""
    model: str
    """Name of the model."""
    system_fingerprint: str
    """Version and digest of the model that generated the response."""
    edlm: GenerationDetails
    """Settings, seeds and cost."""


class CompletionResponse(_Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    """The texts."""
    usage: TokenUsage
    """Numbers of tokens."""


class ChatResponse(_Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    """The messages."""
    usage: TokenUsage
    """Numbers of tokens."""


class InfillResponse(_Answer):
    object: Literal["infill"] = "infill"
    choices: list[InfillChoice]
    """The texts."""
    usage: TokenUsage
    """Numbers of tokens."""


class PromptScore(_Schema):
    nats: float
    """Estimate in nats, for the whole text."""
    standard_error: float
    """Standard error of the estimate."""


class ExactScore(_Schema):
    nats: float
    """-log p(text) in nats, exact: no estimate, and the same for every seed."""
    unmasking: str
    """Rule by which the steps select the positions to unmask."""
    distribution: Literal["another distribution"]
    """It is not the distribution of the texts that this endpoint generates."""


class ScoreResponse(_Answer):
    object: Literal["score"] = "score"
    tokens: int
    """Number of tokens scored, without those of the prompt, given which they are scored."""
    text: str
    """The text as tokenized and decoded."""
    nelbo: PromptScore
    """Upper bound of -log p(text) in continuous time, without an energy."""
    bound: PromptScore
    """Upper bound of -log p(text) under the sampler of the request."""
    energies: dict[str, PromptScore]
    """Mean energy of the text over the noise, per energy; low is likely, and the zero is arbitrary."""
    exact_order: ExactScore | None = None
    """With exact_order: the exact likelihood of the sampler that unmasks the most certain first in fixed counts."""


class IgnoredFields(_Schema):
    ignored: list[str]
    """Request fields unknown to this server, which had no effect."""


class TokenizeResponse(_Schema):
    tokens: list[int]
    """Token ids."""
    pieces: list[str]
    """Text of each token; partial characters are shown as the replacement character."""
    count: int
    """Number of tokens."""
    max_model_len: int
    """Number of tokens that a canvas holds."""
    token_strs: list[str] | None = None
    """The same as `pieces`; present if the request asked for it."""
    edlm: IgnoredFields
    """What was ignored."""


class DetokenizeResponse(_Schema):
    text: str
    """The decoded text."""
    prompt: str
    """The same, by vLLM's name."""
    edlm: IgnoredFields
    """What was ignored."""


class TokenizerInfo(_Schema):
    tokenizer_class: str
    """Kind of the tokenizer, by its Python class."""
    eos_token: None = None
    """Null: no text spells the token that ends a document. Its id is the `separator` of /v1/models."""
    bos_token: None = None
    """Null: there is none."""
    pad_token: None = None
    """Null: there is none."""
    chat_template: str | None
    """Jinja template of conversations, for models that were trained on them."""


class ModelObject(_Schema):
    id: str
    """Name of the model, for `model` in requests."""
    object: Literal["model"] = "model"
    created: int
    """Time at which the endpoint was started, in seconds since 1970 (UTC)."""
    owned_by: Literal["edlm"] = "edlm"
    root: str
    """The name again, which `vllm bench serve` reads."""
    edlm: dict[str, Any]
    """Version, digest, canvas length, special tokens, energies, default sampler, and what is recorded of the model."""


class ModelList(_Schema):
    object: Literal["list"] = "list"
    data: list[ModelObject]
    """The served model, the only one."""


class Health(_Schema):
    status: Literal["ok"] = "ok"


class Version(_Schema):
    version: str
    """Version of this API."""


class Readiness(_Schema):
    status: Literal["ready"] = "ready"
    model: str
    """Name of the model."""
    model_version: str
    """Number of the version in the model registry."""
    digest: str
    """SHA-256 of the model's files."""
    warm: bool
    """Whether the warm-up is finished."""
    alive: bool
    """Whether the engine's thread runs."""
    beat_age_seconds: float
    """Time since the engine last made progress; 0 when idle."""
    backlog_seconds: float
    """Estimated time that queued and running work takes."""


class ErrorDetail(_Schema):
    message: str
    """What is wrong, and what is allowed."""
    type: str
    """Class of the error, as in OpenAI's API."""
    param: str | None
    """Field that is wrong, if one is."""
    code: str | None
    """Machine-readable code."""


class ErrorResponse(_Schema):
    """Error response."""

    error: ErrorDetail
    """The error."""
