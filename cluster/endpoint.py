"""The endpoint: a FastAPI app around one text generator; what to say to every request, good or bad."""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI

from cluster.api import (
    MAX_CHOICES,
    MAX_SEED,
    Choice,
    CompletionRequest,
    CompletionResponse,
    Details,
    InfillChoice,
    InfillRequest,
    InfillResponse,
    Measured,
    ScoreRequest,
    ScoreResponse,
    Usage,
    require_affordable,
)
from cluster.gate import Gate
from cluster.queue import Full, Queue
from cluster.refusal import HANDLERS, Refused
from cluster.registry import ModelVersion
from edlm.canvas import block_count, canvas, context_tokens
from edlm.config import plain
from edlm.generator import OnStep, Score, Text, TextGenerator
from edlm.likelihood import Estimate
from edlm.sampler import Sampler

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Endpoint:
    """What the routes do: check the request, let the generator work in its thread, and wrap what it made."""

    def __init__(self, generator: TextGenerator, version: ModelVersion, queue: Queue) -> None:
        self.generator, self.version, self.queue = generator, version, queue
        self.name, self.since = generator.bundle.name, int(time.time())

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        """POST /v1/completions"""
        request.require_supported()
        sampler, seed = self._settings(request)
        generator, energy = self.generator, request.edlm.energy
        prompts = [_or_refuse("prompt", generator.read, prompt) for prompt in request.prompts]
        blocks = max(block_count(len(prompt), request.max_tokens, generator.length) for prompt in prompts)
        work = self._work(sampler, len(prompts) * request.n, blocks)
        seeds = _seeds(seed, request.n)

        def task(check: Callable[[], None]) -> list[Text]:
            on_step = _on_step(check)
            return [
                text
                for prompt in prompts
                for text in generator.write(prompt, request.max_tokens, seeds, sampler, energy, on_step)
            ]

        texts, seconds = await self._run(work, task)
        read = [generator.tokenizer.decode(prompt) for prompt in prompts]
        shown = [context_tokens(len(prompt), request.max_tokens, generator.length) for prompt in prompts]
        return CompletionResponse(
            id=_id("cmpl"),
            created=int(time.time()),
            model=self.name,
            choices=[Choice(index=i, text=text.text, finish_reason=text.finish_reason) for i, text in enumerate(texts)],
            usage=_usage(sum(map(len, prompts)), sum(len(text.tokens) for text in texts)),
            edlm=self._details(request, seed, sampler, seconds, texts, prompt=read, context_tokens=shown),
        )

    async def infill(self, request: InfillRequest) -> InfillResponse:
        """POST /v1/infill"""
        sampler, seed = self._settings(request)
        generator, energy = self.generator, request.edlm.energy
        if request.parts is not None:
            field, tokens = "parts", _or_refuse("parts", generator.places, request.parts)
        else:
            field, tokens = "tokens", tuple(request.tokens or ())
        _or_refuse(field, lambda known: canvas(known, generator.length, generator.mask), tokens)
        work = self._work(sampler, request.n, 1)
        seeds = _seeds(seed, request.n)
        texts, seconds = await self._run(
            work, lambda check: generator.infill(tokens, seeds, sampler, energy, _on_step(check))
        )
        holes = tokens.count(None)
        return InfillResponse(
            id=_id("infill"),
            created=int(time.time()),
            model=self.name,
            choices=[InfillChoice(index=i, text=text.text, tokens=list(text.tokens)) for i, text in enumerate(texts)],
            usage=_usage(len(tokens) - holes, holes * request.n),
            edlm=self._details(request, seed, sampler, seconds, texts),
        )

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """POST /v1/score"""
        sampler, seed = self._settings(request)
        generator, energy, draws = self.generator, request.edlm.energy, request.draws
        if request.text is not None:
            field, tokens = "text", _or_refuse("text", generator.read, request.text)
        else:
            field, tokens = "tokens", _or_refuse("tokens", generator.read, request.tokens or ())
        if not 1 <= len(tokens) <= generator.length:
            raise Refused(400, f"{len(tokens)} tokens; a score needs 1 to {generator.length}, so cut the text", field)
        work = self._work(sampler, draws, 1)

        def task(_: Callable[[], None]) -> Score:
            return generator.score(tokens, seed, draws, sampler, energy)

        score, seconds = await self._run(work, task)
        return ScoreResponse(
            id=_id("score"),
            created=int(time.time()),
            model=self.name,
            tokens=len(tokens),
            text=generator.tokenizer.decode(tokens),
            nelbo=_measured(score.nelbo),
            bound=_measured(score.bound),
            energies={name: _measured(value) for name, value in score.energies.items()},
            edlm=self._details(request, seed, sampler, seconds),
        )

    def models(self) -> dict[str, Any]:
        """GET /v1/models"""
        generator = self.generator
        facts = {
            **self._identity,
            "length": generator.length,
            "energies": list(generator.energies),
            "energy": generator.bundle.energy,
            "sampler": plain(generator.bundle.sampler),
        }
        model = {"id": self.name, "object": "model", "created": self.since, "owned_by": "edlm", "edlm": facts}
        return {"object": "list", "data": [model]}

    def ready(self) -> dict[str, Any]:
        """GET /readyz"""
        return {"status": "ready", "model": self.name, **self._identity}

    @property
    def _identity(self) -> dict[str, str]:
        return {"model_version": self.version.version, "digest": self.version.digest}

    def _settings(self, request: CompletionRequest | InfillRequest | ScoreRequest) -> tuple[Sampler, int]:
        """How to generate, and the seed; Refused where this model cannot."""
        if request.model not in (None, self.name):
            raise Refused(404, f"no model {request.model!r}; this server has {self.name!r}", "model", "model_not_found")
        sampler = request.edlm.sampler(self.generator.bundle.sampler)
        _or_refuse("edlm.energy", self.generator.energy_for, sampler, request.edlm.energy)
        return sampler, secrets.randbelow(MAX_SEED - MAX_CHOICES) if request.seed is None else request.seed

    def _work(self, sampler: Sampler, rows: int, blocks: int) -> int:
        return require_affordable(rows, blocks, self.generator.length, sampler)

    async def _run(self, work: int, task: Callable[[Callable[[], None]], Value]) -> tuple[Value, float]:
        """What the task returns, and the seconds from the request to it, the wait for others included."""
        started = time.monotonic()
        try:
            result = await self.queue.run(work, task)
        except Full as full:
            raise Refused(
                429, "too many requests are waiting; try again later", None, "queue_full", full.retry_after_seconds
            ) from None
        except TimeoutError:
            seconds = self.queue.timeout_seconds
            raise Refused(504, f"not done within {seconds:g} s; ask for less", None, "deadline_exceeded") from None
        except FloatingPointError:
            log.exception("a network gave something that is not a number")
            raise Refused(500, "the model gave something that is not a number", None, "numerical_error") from None
        return result, time.monotonic() - started

    def _details(
        self,
        request: CompletionRequest | InfillRequest | ScoreRequest,
        seed: int,
        sampler: Sampler,
        seconds: float,
        texts: Sequence[Text] = (),
        **read: Any,
    ) -> Details:
        weighs = sampler.candidates != 1
        ess = [text.tally.mean_ess for text in texts if text.tally.mean_ess is not None]
        return Details(
            seed=seed,
            steps=sampler.steps,
            candidates=sampler.candidates,
            window=sampler.window,
            energy_temperature=sampler.temperature,
            energy=(request.edlm.energy or self.generator.bundle.energy) if weighs else None,
            ess=sum(ess) / len(ess) if ess else None,
            denoiser_calls=sum(text.tally.denoiser_calls for text in texts) if texts else None,
            energy_calls=sum(text.tally.energy_calls for text in texts) if texts else None,
            seconds=round(seconds, 4),
            model_version=self.version.version,
            digest=self.version.digest,
            **read,
        )


def make_app(endpoint: Endpoint, loopback: bool) -> FastAPI:
    """The app with its routes; where it is bound to `loopback`, it answers to no other host's name."""
    # No documentation pages: they load scripts from elsewhere. The schema itself is at /openapi.json.
    app = FastAPI(title="edlm", docs_url=None, redoc_url=None)
    app.add_middleware(Gate, loopback=loopback)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.post("/v1/completions")(endpoint.complete)
    app.post("/v1/infill")(endpoint.infill)
    app.post("/v1/score")(endpoint.score)
    app.get("/v1/models")(endpoint.models)
    app.get("/readyz")(endpoint.ready)
    app.get("/healthz")(lambda: {"status": "ok"})
    return app


def _or_refuse(param: str, check: Callable[..., Value], *arguments: Any) -> Value:
    """`check(*arguments)`, whose ValueError is the client's mistake in the field `param`."""
    try:
        return check(*arguments)
    except ValueError as error:
        raise Refused(400, str(error), param, "invalid_value") from None


def _on_step(check: Callable[[], None]) -> OnStep:
    return lambda _: check()


def _seeds(seed: int, count: int) -> list[int]:
    return [seed + i for i in range(count)]


def _id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def _usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _measured(estimate: Estimate) -> Measured:
    return Measured(nats=estimate.mean, standard_error=estimate.standard_error)
