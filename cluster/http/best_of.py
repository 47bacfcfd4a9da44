"""Ranking: which of several texts has the lowest energy, a token, averaged over the noise (best_of)."""

import math
from collections.abc import Sequence

from cluster.http.errors import APIError
from cluster.http.generation_plan import GenerationPlan
from cluster.http.limits import request_cost as cost
from cluster.http.limits.admission import Admission
from edlm.cooperative import Bites
from edlm.inference.canvas import canvas
from edlm.inference.scoring import mean_energy

DRAWS = 8  # noise samples; all texts of a prompt see the same


def require_rankable(way: GenerationPlan, longest: int) -> None:
    """Refused where no energy tells the texts apart, or where one does not fit a canvas as a whole."""
    if way.energy is None:
        message = "best_of ranks texts by their energy, and this request weighs nothing; give edlm.candidates above 1"
        raise APIError(400, message, "best_of", "unsupported_parameter")
    if longest > way.served.generator.length:
        raise APIError(
            400,
            f"best_of weighs whole texts, and prompt and text together may have {longest} tokens, of which this "
            f"model's canvas holds {way.served.generator.length}; ask for less",
            "best_of",
            "invalid_value",
        )


async def energies_per_token(
    way: GenerationPlan, texts: Sequence[Sequence[int]], admission: Admission
) -> list[float | None]:
    """E(x_0, x_t, t) of each text, its mean over DRAWS noise samples, divided by its tokens; None for an empty one.

    Within `kept_open` of the engine that wrote them, which never turns their ranking away.
    /v1/score says the same of the text with the same seed, up to its noise. Texts of different lengths are compared by
    the token: an energy is a sum over what is masked.
    """
    bites = _energies(way, texts)
    return await admission.measured(ranking_work(len(texts)), bites, 0.0, way, follows=True)


def ranking_work(texts: int) -> float:
    """Passes of the denoiser to rank so many texts."""
    return DRAWS * texts * cost.of_energies(1)


def _energies(way: GenerationPlan, texts: Sequence[Sequence[int]]) -> Bites[list[float | None]]:
    assert way.energy is not None
    generator = way.served.generator
    energy, found = generator.energies[way.energy], []
    for tokens in texts:
        if not tokens:
            found.append(None)
            continue
        x0 = canvas(tokens, len(tokens), generator.mask).to(generator.device).repeat(DRAWS, 1)
        mean = mean_energy(x0, generator.denoiser, energy, way.seed, first_row=0).mean / len(tokens)
        if math.isnan(mean):
            raise FloatingPointError("the energy of a text is not a number")
        found.append(mean)
        yield
    return found
