"""OpenAI-compatible completions: text after a prompt, or between a prompt and a suffix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from pydantic import BaseModel

from cluster.http.admission import Admission
from cluster.http.best_of import energies_per_token, ranking_work, require_rankable
from cluster.http.errors import APIError
from cluster.http.generation import ChoicePart, FinishedChoice, generate
from cluster.http.generation_plan import ANOTHER_DISTRIBUTION, GenerationPlan, seeds, usage
from cluster.http.limits import request_cost as cost
from cluster.http.logprobs import logprobs_of_prompts, of_completion, scoring_work
from cluster.http.schemas.requests import CompletionRequest
from cluster.http.schemas.responses import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    LogprobsDetails,
    TokenUsage,
)
from cluster.http.served_model import or_api_error
from edlm.inference.canvas import context_tokens
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.incremental_text import IncrementalText
from edlm.inference.progress import Progress, Text
from edlm.inference.request import Request
from edlm.inference.stop_strings import cut
from edlm.inference.token_logprobs import TokenLogprob


@dataclass(frozen=True)
class Completions:
    """Completions of one request, `rows` consecutive texts per prompt (`best_of` if given, else `n`)."""

    request: CompletionRequest
    plan: GenerationPlan
    prompts: tuple[tuple[int, ...], ...]
    suffix: tuple[int, ...] | None
    rows: int
    engine_requests: tuple[Request, ...]
    work: float
    prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...] | None = None
    """Of the tokens of each prompt, once `scored`; None if the request does not ask for them."""

    kind = "cmpl"
    chunk_object = "text_completion"
    response: ClassVar[type[BaseModel]] = CompletionResponse

    @property
    def continued(self) -> bool:
        """Whether the prompts are continued; else their canvases are filled, or left alone for `max_tokens` 0."""
        return _continued(self.request)

    @property
    def shown(self) -> Sequence[slice]:
        """Return, per request, the slice of the engine's tokens to show.

        The engine reports the new tokens of a continuation, and the whole canvas of an infill.
        """
        if self.continued:
            return [slice(None)] * len(self.engine_requests)
        starts = [len(self._prompt(i)) for i in range(len(self.engine_requests))]
        return [slice(start, start + self.request.max_tokens) for start in starts]

    async def scored(self, admission: Admission) -> Self:
        """Return these completions with the log-probabilities of their prompts, if the response is to hold them."""
        if not self.request.scores_prompts:
            return self
        task = logprobs_of_prompts(self.prompts, self.plan.served.generator, self.request.logprobs or 0)
        found = await admission.run(scoring_work(self.prompts), task, self.work, self.plan)
        return replace(self, prompt_logprobs=found)

    def choice_texts(self) -> list[IncrementalText]:
        """Return the incremental text of each choice, for streaming."""
        generator = self.plan.served.generator
        ends = (generator.mask, generator.tokenizer.separator)
        return [
            IncrementalText(self._decoder(i), ends, self.request.stops, self.request.echo)
            for i in range(len(self.engine_requests))
        ]

    def finished_choice(self, index: int, text: Text, progress: Progress) -> FinishedChoice:
        """Return the part of its finished text that choice `index` shows."""
        if self.continued:
            shown_text = self._echoed(index, text.tokens, text.text)
            count = len(text.tokens)
            unmasked_at, logprobs = progress.unmasked_at[:count], self._logprobs(index, progress, slice(count))
            return FinishedChoice(shown_text, text.tokens, text.finish_reason, unmasked_at, text.cost, logprobs)
        separator, decoder = self.plan.served.generator.tokenizer.separator, self._decoder(index)
        shown = self.shown[index]
        tokens = text.tokens[shown]
        stopped = separator is not None and separator in tokens
        if stopped:
            tokens = tokens[: tokens.index(separator)]
        whole = decoder.whole(tokens)
        if (end := cut(whole, self.request.stops)) is not None:
            stopped, whole = True, whole[:end]
            tokens = tokens[: decoder.count(whole, tokens)]
        reason = "stop" if stopped else "length"
        shown = slice(shown.start, shown.start + len(tokens))
        unmasked_at, logprobs = progress.unmasked_at[shown], self._logprobs(index, progress, shown)
        return FinishedChoice(self._echoed(index, tokens, whole), tokens, reason, unmasked_at, text.cost, logprobs)

    def logprobs_so_far(self, index: int, progress: Progress, count: int) -> tuple[TokenLogprob, ...] | None:
        """Return the log-probabilities of the first `count` tokens of a choice, after those of an echoed prompt."""
        start = self.shown[index].start or 0
        return self._logprobs(index, progress, slice(start, start + count))

    def choice(self, index: int, part: ChoicePart) -> dict[str, Any]:
        """Return choice `index` of a stream chunk, with this part of its text."""
        choice = CompletionChoice(
            index=index,
            text=part.text,
            finish_reason=None if part.finished is None else part.finished.finish_reason,
            logprobs=self._completion_logprobs(part.logprobs, part.sent),
            **({} if part.finished is None else self._returned(part.finished)),
        )
        return {"logprobs": None} | choice.model_dump(exclude_defaults=True)

    def final_choice(self, index: int, written: FinishedChoice) -> Any:
        """Return choice `index` of the response."""
        return CompletionChoice(
            index=index,
            text=written.text,
            finish_reason=written.finish_reason,
            logprobs=self._completion_logprobs(written.logprobs),
            **self._returned(written),
        )

    def _completion_logprobs(self, logprobs: Sequence[TokenLogprob] | None, sent: int = 0) -> CompletionLogprobs | None:
        """Return log-probabilities in the form of a choice, without the first `sent`; None if there are no others."""
        if logprobs is None or 0 < len(logprobs) <= sent:
            return None
        return of_completion(logprobs, self.plan.served.pieces, sent)

    def details_and_usage(
        self, written: Sequence[FinishedChoice], kept: Sequence[int] | None = None, **more: Any
    ) -> dict[str, Any]:
        """Return the details and the usage of the response, which shows the texts `kept`; None shows all."""
        generator, most = self.plan.served.generator, self.request.max_tokens
        details = self.plan.details(
            [text.cost for text in written],
            seeds=[self.engine_requests[i].seed for i in (range(len(written)) if kept is None else kept)],
            prompt=[generator.tokenizer.decode(prompt) for prompt in self.prompts],
            context_tokens=[
                context_tokens(len(prompt), most, generator.length) if self.suffix is None else len(prompt)
                for prompt in self.prompts
            ],
            logprobs=self._logprobs_details(),
            **more,
        )
        token_usage = self.usage(sum(len(text.tokens) for text in written))
        return {"edlm": details.model_dump(), "usage": token_usage.model_dump()}

    def _logprobs_details(self) -> LogprobsDetails | None:
        if self.request.logprobs is None:
            return None
        if self.prompt_logprobs is None:
            return LogprobsDetails(prompt=None, prompt_distribution=None)
        return LogprobsDetails(prompt="left_to_right", prompt_distribution=ANOTHER_DISTRIBUTION)

    def usage(self, written: int) -> TokenUsage:
        """Return the usage: prompt tokens, and `written` completion tokens."""
        return usage(self.plan.context.prompt_tokens or 0, written)

    async def answer(self, admission: Admission) -> Any:
        """Generate all texts and return the response."""
        kept, details = list(range(len(self.engine_requests))), {}
        if not self.request.ranked:
            written = await generate(self, admission)
        else:
            written, energies = await self._ranked(admission)
            starts = range(0, len(written), self.rows)
            kept = [i for start in starts for i in self._best(energies, start)]
            details = {"best_of_energies": [energies[start : start + self.rows] for start in starts]}
        choices = [self.final_choice(number, written[i]) for number, i in enumerate(kept)]
        totals = self.details_and_usage(written, kept, **details)
        return self.response(choices=choices, **self.plan.heading(self.kind), **totals)

    async def _ranked(self, admission: Admission) -> tuple[list[FinishedChoice], list[float | None]]:
        """Return every text and its energy per token; a draining engine waits for both."""
        with admission.engine.kept_open():
            written = await generate(self, admission)
            texts = [(*self._prompt(i), *text.tokens, *(self.suffix or ())) for i, text in enumerate(written)]
            return written, await energies_per_token(self.plan, texts, admission)

    def _returned(self, written: FinishedChoice) -> dict[str, Any]:
        """Return the additional fields of a choice that the request asks for."""
        returned = self.request.edlm.return_
        return {
            "token_ids": list(written.tokens) if "token_ids" in returned else None,
            "unmasked_at": list(written.unmasked_at) if "trajectory" in returned else None,
        }

    def _logprobs(self, index: int, progress: Progress, shown: slice) -> tuple[TokenLogprob, ...] | None:
        """Return the log-probabilities of the tokens `shown` of choice `index`, after those of an echoed prompt."""
        if progress.logprobs is None:
            return None
        prompt = () if self.prompt_logprobs is None else self.prompt_logprobs[index // self.rows]
        return (*prompt, *(one for one in progress.logprobs[shown] if one is not None))

    def _best(self, energies: Sequence[float | None], start: int) -> list[int]:
        """Return the n texts of lowest energy among those of the prompt at `start`; an empty text ranks last."""
        ranked = sorted(
            range(start, start + self.rows), key=lambda i: math.inf if (energy := energies[i]) is None else energy
        )
        return ranked[: self.request.n]

    def _prompt(self, index: int) -> tuple[int, ...]:
        return self.prompts[index // self.rows]

    def _decoder(self, index: int) -> CompletionDecoder:
        return CompletionDecoder(self.plan.served.generator.tokenizer, self._prompt(index))

    def _echoed(self, index: int, tokens: Sequence[int], text: str) -> str:
        """Return the text of a choice, preceded by the text of its prompt if the request asks for an echo."""
        return self._decoder(index).echoed(tokens, text) if self.request.echo else text


def prepare(request: CompletionRequest, plan: GenerationPlan, form: type[Completions] = Completions) -> Completions:
    """Return the completions that a request asks for; raise APIError if this model cannot generate them."""
    generator = plan.served.generator
    prompts = tuple(or_api_error("prompt", generator.read, prompt) for prompt in request.prompts)
    suffix = None if request.suffix is None else or_api_error("suffix", generator.read, request.suffix)
    plan.context.prompt_tokens = sum(map(len, prompts)) + len(prompts) * len(suffix or ())
    rows = request.rows
    if request.ranked:
        require_rankable(plan, max(map(len, prompts)) + request.max_tokens + len(suffix or ()))
    engine_requests, work = [], 0.0
    for number, prompt in enumerate(prompts):
        if _continued(request):
            engine_requests += [
                plan.engine_request(prompt, request.max_tokens, seed, request.stops, request.logprobs)
                for seed in seeds(plan, number, rows)
            ]
        else:
            known = (
                prompt[-generator.length :] if suffix is None else _between(request, prompt, suffix, generator.length)
            )
            engine_requests += [
                plan.engine_request(known, None, seed, logprobs=request.logprobs) for seed in seeds(plan, number, rows)
            ]
        work += rows * cost.of_request(
            engine_requests[-1], generator
        )  # the texts of a prompt differ only in their seeds
    if request.ranked:
        work += ranking_work(len(engine_requests))
    if request.scores_prompts:
        work += scoring_work(prompts)
    return form(request, plan, prompts, suffix, rows, tuple(engine_requests), work)


def _continued(request: CompletionRequest) -> bool:
    """Return whether the prompts are continued: a request for no tokens is an infill without gaps."""
    return request.suffix is None and request.max_tokens > 0


def _between(
    request: CompletionRequest, prompt: tuple[int, ...], suffix: tuple[int, ...], length: int
) -> tuple[int | None, ...]:
    holes = request.max_tokens
    needed = len(prompt) + holes + len(suffix)
    if needed > length:
        raise APIError(
            400,
            f"prompt, max_tokens and suffix need {len(prompt)} + {holes} + {len(suffix)} positions, and this model's "
            f"canvas has {length}; ask for less",
            "suffix",
            "invalid_value",
        )
    return (*prompt, *[None] * holes, *suffix)
