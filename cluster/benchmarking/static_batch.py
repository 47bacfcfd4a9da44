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
from edlm.inference.continuation import Continuation
from edlm.inference.engine import InferenceEngine
from edlm.inference.future import TextFuture
from edlm.inference.generator import TextGenerator, VersionedGenerator
from edlm.inference.request import EngineFailed, Limits, Request
from edlm.inference.sequence import RunningSequence
from edlm.inference.text import Progress, Tally, Text
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult


class StaticBatch(InferenceEngine):
    """Engine whose requests go to `@serve.batch` instead: at most `size` per batch, collected for `wait_seconds`.

    It must be created in the event loop of a replica.
    """

    def __init__(self, generator: TextGenerator, version: str, size: int, wait_seconds: float) -> None:
        super().__init__(generator, version, Limits())
        self._loop = asyncio.get_running_loop()

        async def filled(jobs: list[Request]) -> list[Text]:
            return await asyncio.to_thread(fill, generator, jobs)

        self._fill = serve.batch(max_batch_size=size, batch_wait_timeout_s=wait_seconds)(filled)

    def submit(self, jobs: Sequence[Request], model: VersionedGenerator | None = None) -> list[TextFuture]:
        """Return a future per request; any thread may call it. Cancelling one frees nothing."""
        return [self._begun(job) for job in jobs]

    def _begun(self, job: Request) -> TextFuture:
        future = TextFuture(self.version, lambda: None, RunningSequence(job, self.generator).frame)

        def end(text: "Future[Text]") -> None:
            error = text.exception()
            future.keep(future.frame() if error is not None else _last(future.frame(), text.result()))
            future.end(text.result() if error is None else EngineFailed(str(error)))

        future.begin()
        asyncio.run_coroutine_threadsafe(self._fill(job), self._loop).add_done_callback(end)
        return future


def _last(frame: Progress, text: Text) -> Progress:
    """Return the progress of a complete text; the steps that led to it are unknown."""
    tokens = text.tokens
    return replace(frame, tokens=tokens, revealed_at=(1,) * len(tokens), step=1, masked=0, t=0.0, tally=text.tally)


def fill(generator: TextGenerator, jobs: Sequence[Request]) -> list[Text]:
    """Return the texts of all jobs, each within one canvas; jobs of one k, window and energy share a sampler call."""
    texts: dict[int, Text] = {}
    for kind in dict.fromkeys(map(_kind, jobs)):
        indices = [i for i, job in enumerate(jobs) if _kind(job) == kind]
        texts |= dict(zip(indices, _alike(generator, [jobs[i] for i in indices]), strict=True))
    return [texts[i] for i in range(len(jobs))]


def _kind(job: Request) -> tuple[Sampler, str | None]:
    """Return what all rows of a call share; not the steps, because all rows take the maximum."""
    return replace(job.sampler, steps=1, grid=None), job.energy


def _alike(generator: TextGenerator, jobs: Sequence[Request]) -> list[Text]:
    network, schedule = generator.denoiser.network, generator.denoiser.schedule
    sampler = max((job.sampler for job in jobs), key=lambda sampler: sampler.steps)
    contexts = [_context(job, generator.length) for job in jobs]
    known = [job.known[len(job.known) - context :] for job, context in zip(jobs, contexts, strict=True)]
    xt = torch.stack([canvas(tokens, generator.length, generator.mask) for tokens in known])
    seeds = torch.tensor([job.seed for job in jobs])
    tallies = [Tally()] * len(jobs)

    def count(step: StepResult) -> None:
        tallies[:] = [tally.plus(step, row) for row, tally in enumerate(tallies)]

    energy = generator.energy_for(sampler, jobs[0].energy)
    rows = sampler.sample(xt, network, energy, schedule, seeds, count).tolist()
    return [
        _text(generator, job, row, context, tally)
        for job, row, context, tally in zip(jobs, rows, contexts, tallies, strict=True)
    ]


def _context(job: Request, length: int) -> int:
    """Return the number of known tokens that the canvas shows; raise ValueError if the text needs several canvases."""
    if job.max_tokens is None:
        return len(job.known)
    context = context_tokens(len(job.known), job.max_tokens, length)
    if context + job.max_tokens > length:
        raise ValueError(f"a static batch fills one canvas of {length}, and {job.max_tokens} tokens need more")
    return context


def _text(generator: TextGenerator, job: Request, row: Sequence[int], context: int, tally: Tally) -> Text:
    tokens = tuple(row[: len(job.known)] if job.max_tokens is None else row[context : context + job.max_tokens])
    prompt = () if job.max_tokens is None else [token for token in job.known if token is not None]
    return Text(tokens, Continuation(generator.tokenizer, prompt).whole(tokens), job.seed, "length", tally)
