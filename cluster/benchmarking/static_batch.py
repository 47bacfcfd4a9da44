"""Static batching, the baseline for continuous batching: requests that arrive together are run together.

A batch is one call of the sampler, so all of its rows take the maximum number of steps requested, and no text is
returned before all are done. Later requests wait, and a row whose request was cancelled is computed all the same.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch
from ray import serve

from edlm.inference.canvas import canvas, context_tokens
from edlm.inference.completion_decoding import CompletionDecoder
from edlm.inference.engine import InferenceEngine
from edlm.inference.future import TextFuture
from edlm.inference.generator import TextGenerator, VersionedGenerator
from edlm.inference.progress import GenerationCost, Progress, Text
from edlm.inference.request import EngineFailed, Limits, Request
from edlm.inference.sequence import RunningSequence
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult


class StaticBatch(InferenceEngine):
    """Engine whose requests go to `@serve.batch` instead: at most `size` per batch, collected for `wait_seconds`.

    It must be created in the event loop of a replica.
    """

    def __init__(self, generator: TextGenerator, version: str, size: int, wait_seconds: float) -> None:
        super().__init__(generator, version, Limits())
        self._loop = asyncio.get_running_loop()

        async def filled(requests: list[Request]) -> list[Text]:
            return await asyncio.to_thread(fill, generator, requests)

        self._fill = serve.batch(max_batch_size=size, batch_wait_timeout_s=wait_seconds)(filled)

    def submit(self, requests: Sequence[Request], model: VersionedGenerator | None = None) -> list[TextFuture]:
        """Return a future per request; any thread may call it. Cancelling one frees nothing."""
        return [self._begun(request) for request in requests]

    def _begun(self, request: Request) -> TextFuture:
        future = TextFuture(self.version, lambda: None, RunningSequence(request, self.generator).progress)

        def end(text: "Future[Text]") -> None:
            error = text.exception()
            future.keep(future.progress() if error is not None else _last(future.progress(), text.result()))
            future.end(text.result() if error is None else EngineFailed(str(error)))

        future.begin()
        asyncio.run_coroutine_threadsafe(self._fill(request), self._loop).add_done_callback(end)
        return future


def _last(progress: Progress, text: Text) -> Progress:
    """Return the progress of a complete text; the steps that led to it are unknown."""
    tokens = text.tokens
    return replace(progress, tokens=tokens, unmasked_at=(1,) * len(tokens), step=1, masked=0, t=0.0, cost=text.cost)


def fill(generator: TextGenerator, requests: Sequence[Request]) -> list[Text]:
    """Return the texts of all requests, each within a canvas; those of one k, window and energy share a sampler."""
    texts: dict[int, Text] = {}
    for kind in dict.fromkeys(map(_kind, requests)):
        indices = [i for i, request in enumerate(requests) if _kind(request) == kind]
        texts |= dict(zip(indices, _alike(generator, [requests[i] for i in indices]), strict=True))
    return [texts[i] for i in range(len(requests))]


def _kind(request: Request) -> tuple[Sampler, str | None]:
    """Return what all rows of a call share; not the steps, because all rows take the maximum."""
    return replace(request.sampler, steps=1, grid=None), request.energy


def _alike(generator: TextGenerator, requests: Sequence[Request]) -> list[Text]:
    network, schedule = generator.denoiser.network, generator.denoiser.schedule
    sampler = max((request.sampler for request in requests), key=lambda sampler: sampler.steps)
    contexts = [_context(request, generator.length) for request in requests]
    known = [request.known[len(request.known) - context :] for request, context in zip(requests, contexts, strict=True)]
    xt = torch.stack([canvas(tokens, generator.length, generator.mask) for tokens in known])
    seeds = torch.tensor([request.seed for request in requests])
    costs = [GenerationCost()] * len(requests)

    def count(step: StepResult) -> None:
        costs[:] = [cost.plus(step, row) for row, cost in enumerate(costs)]

    energy = generator.energy_for(sampler, requests[0].energy)
    rows = sampler.sample(xt, network, energy, schedule, seeds, count).tolist()
    return [
        _text(generator, request, row, context, cost)
        for request, row, context, cost in zip(requests, rows, contexts, costs, strict=True)
    ]


def _context(request: Request, length: int) -> int:
    """Return the number of known tokens that the canvas shows; raise ValueError if the text needs several canvases."""
    if request.max_tokens is None:
        return len(request.known)
    context = context_tokens(len(request.known), request.max_tokens, length)
    if context + request.max_tokens > length:
        raise ValueError(f"a static batch fills one canvas of {length}, and {request.max_tokens} tokens need more")
    return context


def _text(generator: TextGenerator, request: Request, row: Sequence[int], context: int, cost: GenerationCost) -> Text:
    tokens = tuple(
        row[: len(request.known)] if request.max_tokens is None else row[context : context + request.max_tokens]
    )
    prompt = () if request.max_tokens is None else [token for token in request.known if token is not None]
    return Text(tokens, CompletionDecoder(generator.tokenizer, prompt).whole(tokens), request.seed, "length", cost)
