"""Generation of the texts of one request, for a complete response or a stream."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.http.admission import Admission, outcome
from cluster.http.future_watch import FutureWatch
from cluster.http.generation_plan import GenerationPlan
from cluster.http.metrics import instruments
from cluster.http.metrics.instruments import Metrics
from cluster.http.request_context import RequestContext
from cluster.http.schemas.requests import StreamOptions
from cluster.http.schemas.responses import FinishReason, TokenUsage
from cluster.http.streaming.denoising_events import DenoisingEvents
from cluster.http.streaming.sse_events import DONE, event
from edlm.inference.future import TextFuture
from edlm.inference.progress import GenerationCost, Progress, Text
from edlm.inference.request import Request
from edlm.inference.token_logprobs import TokenLogprob


@dataclass(frozen=True)
class FinishedChoice:
    """Finished text as shown by its choice."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    unmasked_at: tuple[int, ...]
    """Step that unmasked each token."""
    cost: GenerationCost
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of each token, after those of an echoed prompt; None if the request does not ask for them."""


@dataclass(frozen=True)
class ChoicePart:
    """Part of a choice that one stream chunk sends."""

    text: str
    first: bool
    """Whether earlier chunks have sent nothing of this choice."""
    logprobs: tuple[TokenLogprob, ...] | None
    """Of the tokens so far, after those of an echoed prompt; None if the request does not ask for them."""
    sent: int
    """Number of these that earlier chunks have sent."""
    finished: FinishedChoice | None
    """The whole choice, in its last part."""


class PreparedRequest(Protocol):
    """Texts to generate and the format of their response; one choice per engine request in `engine_requests`."""

    @property
    def plan(self) -> GenerationPlan: ...

    @property
    def engine_requests(self) -> Sequence[Request]: ...

    @property
    def work(self) -> float: ...

    @property
    def kind(self) -> str:
        """Prefix of the response id."""
        ...

    @property
    def chunk_object(self) -> str:
        """Value of `object` in a stream chunk."""
        ...

    @property
    def shown(self) -> Sequence[slice]:
        """Positions of each engine request that its choice shows."""
        ...

    async def scored(self, admission: Admission) -> "PreparedRequest":
        """Return this request with what it needs to know of its prompts, computed by the engine."""
        ...

    def finished_choice(self, index: int, text: Text, progress: Progress) -> FinishedChoice:
        """Return the part of its finished text that choice `index` shows."""
        ...

    def choice_texts(self) -> "Sequence[ChoiceText]":
        """Return the incremental text of each choice, for streaming."""
        ...

    def logprobs_so_far(self, index: int, progress: Progress, count: int) -> tuple[TokenLogprob, ...] | None:
        """Return the log-probabilities of the first `count` tokens that choice `index` shows."""
        ...

    def choice(self, index: int, part: ChoicePart) -> dict[str, Any]:
        """Return choice `index` of a stream chunk, with this part of it."""
        ...

    def usage(self, written: int) -> TokenUsage:
        """Return the usage: prompt tokens, and `written` completion tokens."""
        ...

    def details_and_usage(self, written: Sequence[FinishedChoice]) -> dict[str, Any]:
        """Return the details and the usage of the response."""
        ...


class ChoiceText(Protocol):
    """Source of the incremental text of one choice."""

    def more(self, tokens: Sequence[int]) -> str: ...

    def rest(self, text: str) -> str: ...

    def count(self, tokens: Sequence[int]) -> int: ...


async def generate(request: PreparedRequest, admission: Admission) -> list[FinishedChoice]:
    """Generate all choices and return them once all are finished."""
    texts: list[Text] = []
    async with admission.texts(request.engine_requests, request.work, request.plan) as futures:
        async for _ in FutureWatch(futures, steps=False).changes():
            # A failed text fails the whole request at once; the others need not finish.
            texts = [outcome(future) for future in futures if future.done]
    written = [request.finished_choice(i, text, futures[i].progress()) for i, text in enumerate(texts)]
    _note(request.plan.context, written, admission.metrics)
    return written


async def stream(
    request: PreparedRequest, admission: Admission, options: StreamOptions, states: bool
) -> AsyncGenerator[bytes]:
    """Yield the chunks of the response; the first is empty and is sent when the first text starts."""
    async with admission.texts(request.engine_requests, request.work, request.plan) as futures:
        run = _Run(request, futures, options, states)
        started = shown = False
        async for _ in FutureWatch(futures, steps=True).changes():
            new = run.chunks()
            if not started and (new or any(future.started is not None for future in futures)):
                started = True
                yield b""
            if new and not shown:
                shown = True
                admission.metrics.observe(instruments.TIME_TO_FIRST_CHUNK, request.plan.context.seconds)
            for chunk in new:
                yield chunk
    _note(request.plan.context, run.finished, admission.metrics)
    yield DONE


def _note(context: RequestContext, written: Sequence[FinishedChoice], metrics: Metrics) -> None:
    """Record finish reason and token count in the request context, and observe the mean ESS of each text."""
    for text in written:
        if text.cost.mean_ess is not None:
            metrics.observe(instruments.ESS, text.cost.mean_ess)
    reasons = {text.finish_reason for text in written}
    context.finish_reason = reasons.pop() if len(reasons) == 1 else "mixed"
    context.completion_tokens = sum(len(text.tokens) for text in written)


class _Run:
    """State of a stream: what was sent of each choice."""

    def __init__(
        self, request: PreparedRequest, futures: Sequence[TextFuture], options: StreamOptions, states: bool
    ) -> None:
        self._request, self._futures, self._options = request, futures, options
        self._heading = request.plan.heading(request.kind) | {"object": request.chunk_object}
        self._texts = request.choice_texts()
        self._progress: list[Progress | None] = [None] * len(request.engine_requests)
        self._written: dict[int, FinishedChoice] = {}
        self._logprobs_sent: dict[int, int] = {}  # by choice of which a chunk was sent
        plan, shown = request.plan, request.shown if states else ()
        self._events = [
            DenoisingEvents(i, plan.served.pieces, plan.sampler, plan.block, positions)
            for i, positions in enumerate(shown)
        ]

    @property
    def finished(self) -> list[FinishedChoice]:
        return [self._written[i] for i in range(len(self._progress))]

    def chunks(self) -> list[bytes]:
        """Return the new chunks."""
        return [chunk for i in range(len(self._progress)) if i not in self._written for chunk in self._chunks_of(i)]

    def _chunks_of(self, i: int) -> list[bytes]:
        future = self._futures[i]
        done = future.done  # read before the progress, so that a done future yields its last progress
        text = outcome(future) if done else None
        progress, chunks = future.progress(), []
        if progress.status == "queued" or (progress is self._progress[i] and not done):
            return []
        if self._events and (state := self._events[i].state(progress)) is not None:
            chunks.append(self._chunk([], edlm={"state": state}))
        self._progress[i] = progress
        if text is None:
            tokens = progress.tokens[self._request.shown[i]]
            if new := self._texts[i].more(tokens):
                logprobs = None
                if progress.logprobs is not None:
                    logprobs = self._request.logprobs_so_far(i, progress, self._texts[i].count(tokens))
                chunks.append(self._chunk([self._choice(i, new, logprobs, None)]))
            return chunks
        written = self._written[i] = self._request.finished_choice(i, text, progress)
        choice = self._choice(i, self._texts[i].rest(written.text), written.logprobs, written)
        return [*chunks, *self._last(choice)]

    def _choice(
        self, i: int, text: str, logprobs: tuple[TokenLogprob, ...] | None, written: FinishedChoice | None
    ) -> dict[str, Any]:
        part = ChoicePart(text, i not in self._logprobs_sent, logprobs, self._logprobs_sent.get(i, 0), written)
        self._logprobs_sent[i] = len(logprobs or ())
        return self._request.choice(i, part)

    def _last(self, choice: dict[str, Any]) -> list[bytes]:
        """Return the final chunk of a choice; for the last choice, also the end of the response."""
        if len(self._written) < len(self._progress):
            return [self._chunk([choice])]
        totals = self._request.details_and_usage(self.finished)
        details = {"details": totals["edlm"]}
        if not self._options.include_usage:
            # Sent with the last choice: a client that did not ask for usage gets no chunk without a choice.
            return [self._chunk([choice], edlm=details)]
        return [self._chunk([choice]), self._chunk([], usage=totals["usage"], edlm=details)]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": self._usage()} if self._options.include_usage else {}
        return event({**self._heading, "choices": choices, **usage, **more})

    def _usage(self) -> dict[str, Any] | None:
        """Return the usage so far if every chunk is to include it, else None."""
        if not self._options.continuous_usage_stats:
            return None
        latest = zip(self._progress, self._request.shown, strict=True)
        unmasked = [
            step > 0 for progress, shown in latest if progress is not None for step in progress.unmasked_at[shown]
        ]
        return self._request.usage(sum(unmasked)).model_dump()
