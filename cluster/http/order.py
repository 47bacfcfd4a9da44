"""An order: a request that was checked, as jobs for the engine, and what its answer will say of them."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.http.answers import Details, Usage
from cluster.http.api import MAX_CHOICES, MAX_SEED, CompletionRequest, InfillRequest, ScoreRequest
from cluster.http.served import Served, or_refuse
from cluster.http.visit import Visit
from edlm.job import Job
from edlm.sampler import Sampler
from edlm.text import Tally


@dataclass(frozen=True)
class Way:
    """How a request is answered: with which model and sampler, from which seed, for whom, until when."""

    served: Served
    sampler: Sampler
    energy: str | None
    """What weighs the candidates; None: nothing is weighed."""
    seed: int
    visit: Visit
    deadline: float

    def job(self, known: Sequence[int | None], max_tokens: int | None, seed: int, stops: tuple[str, ...] = ()) -> Job:
        """One text: what follows the `known` tokens, or `known` with its holes filled where `max_tokens` is None."""
        return Job(
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

    def details(self, tallies: Sequence[Tally] = (), **read: Any) -> Details:
        """The object `edlm` of the answer."""
        ess = [tally.mean_ess for tally in tallies if tally.mean_ess is not None]
        return Details(
            seed=self.seed,
            steps=self.sampler.steps,
            candidates=self.sampler.candidates,
            window=self.sampler.window,
            energy_temperature=self.sampler.temperature,
            energy=self.energy,
            ess=sum(ess) / len(ess) if ess else None,
            denoiser_calls=sum(tally.denoiser_calls for tally in tallies) if tallies else None,
            energy_calls=sum(tally.energy_calls for tally in tallies) if tallies else None,
            seconds=round(self.visit.seconds, 4),
            model_version=self.served.version,
            digest=self.served.digest,
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


def way(
    request: CompletionRequest | InfillRequest | ScoreRequest, served: Served, visit: Visit, deadline: float
) -> Way:
    """How to answer the request; Refused where this model cannot."""
    served.require_named(request.model)
    generator = served.generator
    sampler = request.edlm.sampler(generator.bundle.sampler)
    weighs = or_refuse("edlm.energy", generator.energy_for, sampler, request.edlm.energy) is not None
    energy = (request.edlm.energy or generator.bundle.energy) if weighs else None
    seed = secrets.randbelow(MAX_SEED - MAX_CHOICES) if request.seed is None else request.seed
    return Way(served, sampler, energy, seed, visit, deadline)


def seeds(seed: int, count: int) -> list[int]:
    """The seeds of a prompt's texts; every prompt of a request has the same."""
    return [seed + i for i in range(count)]


def usage(prompt: int, completion: int) -> Usage:
    """Tokens that were read and written."""
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
