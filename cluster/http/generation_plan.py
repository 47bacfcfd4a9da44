"""An order: a request that was checked, as jobs for the engine, and what its answer will say of them."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from cluster.http.forms import MAX_INTEGER
from cluster.http.request_context import RequestContext
from cluster.http.schemas.requests import LEAST_SEED, CompletionRequest, InfillRequest, ScoreRequest, Streams
from cluster.http.schemas.responses import GenerationDetails, TokenUsage
from cluster.http.served_model import ServedModel, or_refuse
from edlm import rng as streams
from edlm.inference.request import Request
from edlm.inference.text import Tally
from edlm.interfaces import proposal_of
from edlm.rng import Purpose
from edlm.sampling.sampler import Sampler

ANOTHER_LAW: Literal["another law"] = "another law"


@dataclass(frozen=True)
class GenerationPlan:
    """How a request is answered: with which model and sampler, from which seed, for whom, until when."""

    served: ServedModel
    sampler: Sampler
    energy: str | None
    """What weighs the candidates; None: nothing is weighed."""
    temperature: float
    """Of the tokens."""
    seed: int
    streams: Streams
    visit: RequestContext
    deadline: float

    def job(
        self, known: Sequence[int | None], max_tokens: int | None, seed: int, stops: tuple[str, ...] = ()
    ) -> Request:
        """One text: what follows the `known` tokens, or `known` with its holes filled where `max_tokens` is None."""
        return Request(
            known=tuple(known),
            max_tokens=max_tokens,
            seed=seed,
            sampler=self.sampler,
            energy=self.energy,
            key=self.visit.key,
            deadline=self.deadline,
            stop=stops,
        )

    @property
    def block(self) -> int | None:
        """How many positions are weighed together; None: all, or nothing is weighed."""
        return None if self.energy is None else self.served.generator.energies[self.energy].block

    def details(self, tallies: Sequence[Tally] = (), **read: Any) -> GenerationDetails:
        """The object `edlm` of the answer."""
        ess = [tally.mean_ess for tally in tallies if tally.mean_ess is not None]
        return GenerationDetails(
            seed=self.seed,
            streams=self.streams,
            steps=self.sampler.steps,
            candidates=self.sampler.candidates,
            window=self.sampler.window,
            energy_temperature=self.sampler.energy_temperature,
            energy=self.energy,
            temperature=self.temperature,
            law=None if self.temperature == 1 else ANOTHER_LAW,
            ess=sum(ess) / len(ess) if ess else None,
            denoiser_calls=sum(tally.denoiser_calls for tally in tallies) if tallies else None,
            energy_calls=sum(tally.energy_calls for tally in tallies) if tallies else None,
            seconds=round(self.visit.seconds, 4),
            model_version=self.served.version,
            digest=self.served.digest,
            ignored=list(self.visit.ignored),
            **read,
        )

    def heading(self, kind: str) -> dict[str, Any]:
        """What every answer, and every piece of one, begins with."""
        return {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
        }


def plan_generation(
    request: CompletionRequest | InfillRequest | ScoreRequest,
    served: ServedModel,
    visit: RequestContext,
    deadline: float,
) -> GenerationPlan:
    """How to answer the request; Refused where this model cannot."""
    visit.ignored = request.ignored
    served.require_named(request.model)
    temperature = 1.0 if isinstance(request, ScoreRequest) else request.temperature
    served = served.at(temperature)
    generator = served.generator
    sampler = request.edlm.sampler(generator.bundle.sampler)
    weighing = or_refuse("edlm.energy", generator.energy_for, sampler, request.edlm.energy)
    if temperature == 0 and sampler.candidates > 1 and weighing is not None and proposal_of(weighing) is None:
        # All candidates are the likeliest tokens: there is nothing to choose.
        sampler, weighing = replace(sampler, candidates=1), None
    energy = None if weighing is None else request.edlm.energy or generator.bundle.energy
    seed = secrets.randbelow(MAX_INTEGER) if request.seed is None else request.seed
    return GenerationPlan(served, sampler, energy, temperature, seed, request.streams, visit, deadline)


def seeds(plan: GenerationPlan, prompt: int, count: int) -> list[int]:
    """The seeds of the texts of the prompt of that number, from 0.

    Shared streams: seed + i, the same for every prompt. Independent ones: a hash of the seed, the prompt's number and
    i, so that requests of neighbouring seeds share no text either; but the very first text has the request's own seed,
    so that a text that is asked for alone is always what its seed writes.
    """
    if plan.streams == "shared":
        return [_signed(plan.seed + i) for i in range(count)]
    found = streams.seeds(plan.seed, prompt, torch.arange(count), Purpose.TEXT).remainder(MAX_INTEGER + 1).tolist()
    return [plan.seed, *found[1:]] if prompt == 0 else found


def _signed(seed: int) -> int:
    """After the largest seed of 64 bits comes the least."""
    return (seed - LEAST_SEED) % 2**64 + LEAST_SEED


def usage(prompt: int, completion: int) -> TokenUsage:
    """Tokens that were read and written."""
    return TokenUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
