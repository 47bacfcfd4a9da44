"""Ranking of texts for `best_of` by energy per token, averaged over noise."""

import math
from collections.abc import Sequence

from cluster.http.admission import Admission
from cluster.http.errors import APIError
from cluster.http.generation_plan import GenerationPlan
from cluster.http.limits import request_cost as cost
from edlm.cooperative_work import Cooperative
from edlm.inference.canvas import canvas
from edlm.inference.scoring import mean_energy

DRAWS = 8  # noise samples, shared by all texts of a prompt


def require_rankable(plan: GenerationPlan, longest: int) -> None:
    """Raise APIError if the request has no energy to rank by, or if `longest` tokens do not fit a canvas."""
    if plan.energy is None:
        message = "best_of ranks texts by their energy, and this request uses none; set edlm.candidates above 1"
        raise APIError(400, message, "best_of", "unsupported_parameter")
    if longest > plan.served.generator.length:
        raise APIError(
            400,
            f"best_of scores whole texts, and prompt and text together may have {longest} tokens, of which this "
            f"model's canvas holds {plan.served.generator.length}; ask for less",
            "best_of",
            "invalid_value",
        )


async def energies_per_token(
    plan: GenerationPlan, texts: Sequence[Sequence[int]], admission: Admission
) -> list[float | None]:
    """Return the energy E(x_0, x_t, t) per token of each text, averaged over DRAWS noise samples; None if it is empty.

    Call it within `kept_open` of the engine that generated the texts, which then never rejects their ranking.
    /v1/score measures the same for a text with the same seed, up to noise. Dividing by the number of tokens makes
    texts of different lengths comparable, because an energy is a sum over masked positions.
    """
    task = _energies(plan, texts)
    return await admission.run(ranking_work(len(texts)), task, 0.0, plan, follows=True)


def ranking_work(texts: int) -> float:
    """Return the denoiser passes to rank `texts` texts."""
    return DRAWS * texts * cost.of_energies(1)


def _energies(plan: GenerationPlan, texts: Sequence[Sequence[int]]) -> Cooperative[list[float | None]]:
    assert plan.energy is not None
    generator = plan.served.generator
    energy, energies = generator.energies[plan.energy], []
    for tokens in texts:
        if not tokens:
            energies.append(None)
            continue
        x0 = canvas(tokens, len(tokens), generator.mask).to(generator.device).repeat(DRAWS, 1)
        mean = mean_energy(x0, generator.denoiser, energy, plan.seed, first_row=0).mean / len(tokens)
        if math.isnan(mean):
            raise FloatingPointError("the energy of a text is not a number")
        energies.append(mean)
        yield
    return energies
