"""Published-race measurements: entropy against T, by races and exact, of texts and of token distributions."""

import math
from dataclasses import dataclass

import torch

from edlm.baselines.published_sampler import EXACT_LABEL
from edlm.evaluation.race_entropy import entropy_against_steps, race_entropy
from workflows.evaluation.measurements.measurement import AbstractMeasurement, MeasuredRows, models, validation
from workflows.row_names import PLAIN

RACED = "float32 race"


@dataclass(frozen=True, kw_only=True)
class SampledRaceEntropy(AbstractMeasurement):
    """Plain diffusion from a masked canvas, by float32 races and by the exact sampler, at one number of steps."""

    steps: int
    texts: int

    @property
    def label(self) -> str:
        return f"entropy of the published races at T = {self.steps}"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("denoiser",)

    @property
    def cost(self) -> float:
        return 2 * self.steps

    def find(self) -> MeasuredRows:
        denoiser, _ = models(self.subject, PLAIN)
        canvas = torch.full((self.texts, denoiser.length), denoiser.network.mask)
        entries = entropy_against_steps(canvas, denoiser.network, denoiser.schedule, [self.steps], self.subject.seed)
        rows = [
            {
                "steps": row.steps,
                "sampler": row.sampler,
                "entropy_nats": row.entropy_nats,
                "entropy_standard_error": row.standard_error,
                "entropy_bits": row.entropy_bits,
                **self.common(published=row.sampler != EXACT_LABEL),
                "sequences": self.texts,
            }
            for row in entries
        ]
        return MeasuredRows({"sampled_race_entropy": rows})


@dataclass(frozen=True, kw_only=True)
class RaceEntropy(AbstractMeasurement):
    """Entropy of the denoiser's token distributions on validation sequences: exact, and what a race leaves of it."""

    steps: tuple[int, ...]

    @property
    def label(self) -> str:
        return "entropy of the denoiser's distributions under the published races, in closed form"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", "denoiser")

    @property
    def cost(self) -> float:
        return 4.0 * len(self.steps)

    def find(self) -> MeasuredRows:
        (denoiser, _), rows = models(self.subject, PLAIN), []
        x0 = validation(self.subject)
        for steps in self.steps:
            estimates = race_entropy(x0, denoiser.network, denoiser.schedule, steps, self.subject.seed)
            for sampler, estimate in zip((EXACT_LABEL, RACED), estimates, strict=True):
                rows.append(
                    {
                        "steps": steps,
                        "sampler": sampler,
                        "entropy_nats": estimate.mean,
                        "entropy_standard_error": estimate.standard_error,
                        "entropy_bits": estimate.mean / math.log(2),
                        **self.common(published=sampler == RACED),
                    }
                )
        return MeasuredRows({"race_entropy": rows})
