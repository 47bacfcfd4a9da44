"""Static batching, which continuous batching is measured against: texts that come together are filled together.

A batch is one call of the sampler, so all of its rows take the most steps that one of them asked for, and nobody has
his text before all have. What comes meanwhile waits, and a row that nobody waits for any more is filled all the same.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch
from ray import serve

from edlm.inference.canvas import canvas, context_tokens
from edlm.inference.continuation import Continuation
from edlm.inference.engine import InferenceEngine, VersionedGenerator
from edlm.inference.future import TextFuture
from edlm.inference.generator import TextGenerator
from edlm.inference.request import EngineFailed, Limits, Request
from edlm.inference.sequence import RunningSequence
from edlm.inference.text import Progress, Tally, Text
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import StepResult


class StaticBatch(InferenceEngine):
    """An engine whose texts go to `@serve.batch` instead: at most `size` together, of what comes within a wait.

    It is made in the event loop of a replica.
    """

    def __init__(self, generator: TextGenerator, version: str, size: int, wait_seconds: float) -> None:
        super().__init__(generator, version, Limits())
        self._loop = asyncio.get_running_loop()

        async def filled(jobs: list[Request]) -> list[Text]:
            return await asyncio.to_thread(fill, generator, jobs)

        self._fill = serve.batch(max_batch_size=size, batch_wait_timeout_s=wait_seconds)(filled)

    def submit(self, jobs: Sequence[Request], model: VersionedGenerator | None = None) -> list[TextFuture]:
        """A ticket for each, from any thread. Cancelling one frees nothing."""
        return [self._begun(job) for job in jobs]

    def _begun(self, job: Request) -> TextFuture:
        ticket = TextFuture(self.version, lambda: None, RunningSequence(job, self.generator).frame)

        def end(text: "Future[Text]") -> None:
            error = text.exception()
            ticket.keep(ticket.frame() if error is not None else _last(ticket.frame(), text.result()))
            ticket.end(text.result() if error is None else EngineFailed(str(error)))

        ticket.begin()
        asyncio.run_coroutine_threadsafe(self._fill(job), self._loop).add_done_callback(end)
        return ticket


def _last(frame: Progress, text: Text) -> Progress:
    """The state in which all is there; of how it came to be none is known."""
    tokens = text.tokens
    return replace(frame, tokens=tokens, revealed_at=(1,) * len(tokens), step=1, masked=0, t=0.0, tally=text.tally)


def fill(generator: TextGenerator, jobs: Sequence[Request]) -> list[Text]:
    """The texts of all jobs, each within one canvas; those of one k, window and energy in one call of the sampler."""
    texts: dict[int, Text] = {}
    for kind in dict.fromkeys(map(_kind, jobs)):
        own = [i for i, job in enumerate(jobs) if _kind(job) == kind]
        texts |= dict(zip(own, _alike(generator, [jobs[i] for i in own]), strict=True))
    return [texts[i] for i in range(len(jobs))]


def _kind(job: Request) -> tuple[Sampler, str | None]:
    """What all rows of a call share; not the steps, for all of them take the most."""
    return replace(job.sampler, steps=1, grid=None), job.energy


def _alike(generator: TextGenerator, jobs: Sequence[Request]) -> list[Text]:
    network, schedule = generator.denoiser.network, generator.denoiser.schedule
    sampler = max((job.sampler for job in jobs), key=lambda sampler: sampler.steps)
    contexts = [_context(job, generator.length) for job in jobs]
    known = [job.known[len(job.known) - context :] for job, context in zip(jobs, contexts, strict=True)]
    xt = torch.stack([canvas(each, generator.length, generator.mask) for each in known])
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
    """How many of the known tokens the canvas shows; ValueError for a text that needs more canvases than one."""
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
