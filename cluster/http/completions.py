"""OpenAI-compatible completions: text after a prompt, or between a prompt and a suffix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.http.admission import Admission
from cluster.http.best_of import energies_per_token, ranking_work, require_rankable
from cluster.http.errors import APIError
from cluster.http.generation import FinishedChoice, generate
from cluster.http.generation_plan import GenerationPlan, seeds, usage
from cluster.http.limits import request_cost as cost
from cluster.http.schemas.requests import CompletionRequest
from cluster.http.schemas.responses import CompletionChoice, CompletionResponse, TokenUsage
from cluster.http.served_model import or_api_error
from edlm.inference.canvas import context_tokens
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.incremental_text import IncrementalText
from edlm.inference.progress import Progress, Text
from edlm.inference.request import Request
from edlm.inference.stop_strings import cut


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

    kind = "cmpl"
    chunk_object = "text_completion"

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
            unmasked_at = progress.unmasked_at[: len(text.tokens)]
            return FinishedChoice(shown_text, text.tokens, text.finish_reason, unmasked_at, text.cost)
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
        unmasked_at = progress.unmasked_at[shown][: len(tokens)]
        return FinishedChoice(self._echoed(index, tokens, whole), tokens, reason, unmasked_at, text.cost)

    def choice(self, index: int, text: str, written: FinishedChoice | None) -> dict[str, Any]:
        """Return choice `index` of a stream chunk; `written` is None while the text continues."""
        return self._choice(index, text, written).model_dump(exclude_defaults=True) | {"logprobs": None}

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
            **more,
        )
        token_usage = self.usage(sum(len(text.tokens) for text in written))
        return {"edlm": details.model_dump(), "usage": token_usage.model_dump()}

    def usage(self, written: int) -> TokenUsage:
        """Return the usage: prompt tokens, and `written` completion tokens."""
        return usage(self.plan.context.prompt_tokens or 0, written)

    async def answer(self, admission: Admission) -> CompletionResponse:
        """Generate all texts and return the response."""
        kept, details = list(range(len(self.engine_requests))), {}
        if not self.request.ranked:
            written = await generate(self, admission)
        else:
            written, energies = await self._ranked(admission)
            starts = range(0, len(written), self.rows)
            kept = [i for start in starts for i in self._best(energies, start)]
            details = {"best_of_energies": [energies[start : start + self.rows] for start in starts]}
        choices = [self._choice(number, written[i].text, written[i]) for number, i in enumerate(kept)]
        totals = self.details_and_usage(written, kept, **details)
        return CompletionResponse(choices=choices, **self.plan.heading(self.kind), **totals)

    async def _ranked(self, admission: Admission) -> tuple[list[FinishedChoice], list[float | None]]:
        """Return every text and its energy per token; a draining engine waits for both."""
        with admission.engine.kept_open():
            written = await generate(self, admission)
            texts = [(*self._prompt(i), *text.tokens, *(self.suffix or ())) for i, text in enumerate(written)]
            return written, await energies_per_token(self.plan, texts, admission)

    def _choice(self, index: int, text: str, written: FinishedChoice | None) -> CompletionChoice:
        if written is None:
            return CompletionChoice(index=index, text=text, finish_reason=None)
        returned = self.request.edlm.return_
        return CompletionChoice(
            index=index,
            text=text,
            finish_reason=written.finish_reason,
            token_ids=list(written.tokens) if "token_ids" in returned else None,
            unmasked_at=list(written.unmasked_at) if "trajectory" in returned else None,
        )

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


def prepare(request: CompletionRequest, plan: GenerationPlan) -> Completions:
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
                plan.engine_request(prompt, request.max_tokens, seed, request.stops)
                for seed in seeds(plan, number, rows)
            ]
        else:
            known = (
                prompt[-generator.length :] if suffix is None else _between(request, prompt, suffix, generator.length)
            )
            engine_requests += [plan.engine_request(known, None, seed) for seed in seeds(plan, number, rows)]
        work += rows * cost.of_request(
            engine_requests[-1], generator
        )  # the texts of a prompt differ only in their seeds
    if request.ranked:
        work += ranking_work(len(engine_requests))
    return Completions(request, plan, prompts, suffix, rows, tuple(engine_requests), work)


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
