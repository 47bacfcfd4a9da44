"""A cell of the published artefact: the entropy of texts against T, by the published races and exactly."""

from dataclasses import dataclass

import torch

from edlm.legacy import EXACT_LABEL, entropy_against_steps
from workflows.cells.cell import PLAIN, AbstractCell, Found, models


@dataclass(frozen=True, kw_only=True)
class LegacyEntropy(AbstractCell):
    """Plain diffusion from nothing, in float32 races and by the exact sampler, at one number of steps."""

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

    def find(self) -> Found:
        denoiser, _ = models(self.subject, PLAIN)
        canvas = torch.full((self.texts, denoiser.length), denoiser.network.mask)
        found = entropy_against_steps(canvas, denoiser.network, denoiser.schedule, [self.steps], self.subject.seed)
        rows = [
            {
                "steps": row.steps,
                "sampler": row.sampler,
                "entropy_nats": row.entropy_nats,
                "entropy_standard_error": row.standard_error,
                "entropy_bits": row.entropy_bits,
                **self.common(legacy=row.sampler != EXACT_LABEL),
                "sequences": self.texts,
            }
            for row in found
        ]
        return Found({"legacy_entropy": rows})
