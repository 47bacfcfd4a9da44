"""Generation settings of one request: overrides of a model's defaults, the energy in use, and the seeds of its texts.

The HTTP endpoint and `edlm.inference.language_model.LanguageModel` share these rules, so that they generate alike.
"""

from dataclasses import dataclass, replace

from edlm.config import ConfigurationError, replaced
from edlm.inference.generator import TextGenerator
from edlm.interfaces import proposal_of
from edlm.sampling.sampler import EXACT, Sampler

LEAST_SEED, MAX_SEED = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class ResolvedSettings:
    """Sampler and energy of a request, defaults filled in."""

    sampler: Sampler
    energy: str | None
    """Name of the energy that scores the candidates; None: no resampling."""


def overridden(
    default: Sampler,
    *,
    steps: int | None = None,
    candidates: int | None = None,
    window: tuple[float, float] | None = None,
    energy_temperature: float | None = None,
) -> Sampler:
    """Return `default` with what is given; a grid fitted to another number of steps is dropped.

    Raise ConfigurationError for a value that no sampler has, and for exact sampling at an energy temperature other
    than 1.
    """
    values = {"steps": steps, "candidates": candidates, "window": window, "energy_temperature": energy_temperature}
    changed = {name: value for name, value in values.items() if value is not None}
    if steps not in (None, default.steps):
        changed["grid"] = None
    if candidates not in (None, default.candidates):
        changed["speculative"] = False
    if changed.get("candidates", default.candidates) == EXACT:
        if energy_temperature not in (None, 1.0):
            what = f"candidates = 0 draws exactly, at temperature 1; got {energy_temperature:g}"
            raise ConfigurationError(f"{what}: leave it out, or ask for k >= 1")
        changed["energy_temperature"] = 1.0
    return replaced(default, "settings", **changed)


def resolved(generator: TextGenerator, sampler: Sampler, energy: str | None, temperature: float) -> ResolvedSettings:
    """Return the settings with which `generator`, made for the token temperature, generates.

    Raise ValueError if the model has no such energy, or if it cannot do what the sampler asks.
    """
    scorer = generator.energy_for(sampler, energy)
    if temperature == 0 and sampler.candidates > 1 and scorer is not None and proposal_of(scorer) is None:
        # All candidates consist of the most likely tokens, so resampling has no effect.
        sampler, scorer = replace(sampler, candidates=1), None
    return ResolvedSettings(sampler, None if scorer is None else energy or generator.bundle.energy)


def consecutive_seeds(seed: int, count: int) -> list[int]:
    """Return `seed`, `seed` + 1, ..., wrapped around in the signed 64-bit range."""
    return [(seed + i - LEAST_SEED) % 2**64 + LEAST_SEED for i in range(count)]
