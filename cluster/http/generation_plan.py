"""Plan of a validated request: its engine requests, and the details reported in its response."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from cluster.http.errors import APIError
from cluster.http.request_context import RequestContext
from cluster.http.schemas.constraints import RequestedConstraint
from cluster.http.schemas.field_types import MAX_INTEGER
from cluster.http.schemas.requests import GenerationRequest, ScoreRequest, Streams
from cluster.http.schemas.responses import ConstraintDetails, GenerationDetails, TokenUsage
from cluster.http.served_model import ServedModel, or_api_error
from edlm import rng as streams
from edlm.inference.progress import GenerationCost
from edlm.inference.request import Request
from edlm.inference.settings import consecutive_seeds, resolved
from edlm.inference.token_temperature import temperature_given_constraint
from edlm.rng import Purpose
from edlm.sampling.sampler import Sampler

ANOTHER_DISTRIBUTION: Literal["another distribution"] = "another distribution"


@dataclass(frozen=True)
class GenerationPlan:
    """How to serve a request: model, sampler, energy, seed, request context and deadline."""

    served: ServedModel
    sampler: Sampler
    energy: str | None
    """Energy that scores the candidates; None: no resampling."""
    temperature: float
    """Token temperature."""
    top_k: int | None
    """Number of likeliest tokens that each token is drawn from; None: all."""
    top_p: float
    """Probability of the nucleus that each token is drawn from; 1: all tokens."""
    constraint: RequestedConstraint | None
    """What the texts satisfy; None: any text."""
    seed: int
    streams: Streams
    context: RequestContext
    deadline: float
    candidate_tokens: bool = False
    """Whether the stream reports the tokens of candidates."""

    def engine_request(
        self,
        known: Sequence[int | None],
        max_tokens: int | None,
        seed: int,
        stops: tuple[str, ...] = (),
        logprobs: int | None = None,
    ) -> Request:
        """Return the engine request for one text: a continuation of `known`, or an infill if `max_tokens` is None."""
        return Request(
            known=tuple(known),
            max_tokens=max_tokens,
            seed=seed,
            sampler=self.sampler,
            energy=self.energy,
            key=self.context.key,
            deadline=self.deadline,
            stop=stops,
            logprobs=logprobs,
            constraint=None if self.constraint is None else self.constraint.specification,
            candidate_tokens=self.candidate_tokens,
        )

    @property
    def truncated(self) -> bool:
        """Whether the distributions of the tokens are truncated."""
        return _is_truncated(self.top_k, self.top_p)

    @property
    def block(self) -> int | None:
        """Positions per block that are scored together; None: all positions, or no resampling."""
        return None if self.energy is None else self.served.generator.energies[self.energy].block

    def details(self, costs: Sequence[GenerationCost] = (), **read: Any) -> GenerationDetails:
        """Return the object `edlm` of the response."""
        ess = [cost.mean_ess for cost in costs if cost.mean_ess is not None]
        return GenerationDetails(
            seed=self.seed,
            streams=self.streams,
            steps=self.sampler.steps,
            candidates=self.sampler.candidates,
            window=self.sampler.window,
            energy_temperature=self.sampler.energy_temperature,
            energy=self.energy,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            constraint=None if self.constraint is None else _described(self.constraint),
            distribution=ANOTHER_DISTRIBUTION if self.temperature != 1 or self.truncated else None,
            ess=sum(ess) / len(ess) if ess else None,
            denoiser_calls=sum(cost.denoiser_calls for cost in costs) if costs else None,
            energy_calls=sum(cost.energy_calls for cost in costs) if costs else None,
            seconds=round(self.context.seconds, 4),
            model_version=self.served.version,
            digest=self.served.digest,
            ignored=list(self.context.ignored),
            **read,
        )

    def heading(self, kind: str) -> dict[str, Any]:
        """Return the fields common to every response and every stream chunk."""
        return {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
        }


def plan_generation(
    request: GenerationRequest | ScoreRequest,
    served: ServedModel,
    context: RequestContext,
    deadline: float,
) -> GenerationPlan:
    """Return the plan for a request; raise APIError if this model cannot serve it."""
    context.ignored = request.ignored
    served.require_named(request.model)
    temperature, top_k, top_p, constraint, candidate_tokens = 1.0, None, 1.0, None, False
    if isinstance(request, GenerationRequest):
        temperature, top_k, top_p = request.temperature, request.likeliest, request.top_p
        constraint, candidate_tokens = request.constraint, request.reports_candidates
    elif request.edlm.constraint is not None:
        message = "a score is of any text; edlm.sampler_bound of the Python package bounds texts with a constraint"
        raise APIError(400, message, "edlm.constraint", "unsupported_parameter")
    drawn_at = temperature if constraint is None else temperature_given_constraint(temperature)
    served = served.at(drawn_at, top_k, top_p)
    generator = served.generator
    sampler = request.edlm.sampler(generator.bundle.sampler)
    if _is_truncated(top_k, top_p):
        sampler = replace(sampler, speculative=False)
    settings = or_api_error("edlm.energy", resolved, generator, sampler, request.edlm.energy, temperature)
    if constraint is not None:
        or_api_error("edlm.candidates", settings.sampler.require_candidates)
    seed = secrets.randbelow(MAX_INTEGER) if request.seed is None else request.seed
    return GenerationPlan(
        served, settings.sampler, settings.energy, temperature, top_k, top_p, constraint, seed, request.streams,
        context, deadline, candidate_tokens,
    )  # fmt: skip


def _described(constraint: RequestedConstraint) -> ConstraintDetails:
    return ConstraintDetails(field=constraint.field, kind=constraint.specification.kind)


def _is_truncated(top_k: int | None, top_p: float) -> bool:
    return top_k is not None or top_p < 1


def seeds(plan: GenerationPlan, prompt: int, count: int) -> list[int]:
    """Return the seeds of the `count` texts of the prompt with index `prompt`, from 0.

    Shared streams: seed + i, the same for every prompt. Independent streams: a hash of the seed, the prompt index and
    i, so that requests with neighboring seeds share no text either. The first text of the first prompt keeps the seed
    of the request in both cases, so that a request for one text always generates the text of its seed.
    """
    if plan.streams == "shared":
        return consecutive_seeds(plan.seed, count)
    hashed = streams.seeds(plan.seed, prompt, torch.arange(count), Purpose.TEXT).remainder(MAX_INTEGER + 1).tolist()
    return [plan.seed, *hashed[1:]] if prompt == 0 else hashed


def usage(prompt: int, completion: int) -> TokenUsage:
    """Return the usage for these numbers of prompt and completion tokens."""
    return TokenUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
