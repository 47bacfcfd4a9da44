"""Exact-distance measurements: how far the models are from the distribution of a source that is known exactly."""

from dataclasses import dataclass

import torch

from edlm.evaluation.exact_distance import denoiser_distance, sample_distance
from edlm.evaluation.exact_energy_distance import EnergyDistance, energy_distance
from edlm.rng import Purpose, seeds
from edlm.sampling.sampler import Sampler
from workflows.evaluation.measurements.likelihood import sampler_columns, sampler_label
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    Row,
    distribution_of,
    energy_inputs,
    energy_model,
    models,
    validation,
)
from workflows.row_names import PLAIN

REFERENCE_SEED_OFFSET = 1  # added to the seed of the source's reference sequences, so that they are not the data again


@dataclass(frozen=True, kw_only=True)
class ExactMarginalDistance(AbstractMeasurement):
    """The denoiser's marginals against the exact ones, by quarter of t."""

    draws: int

    @property
    def label(self) -> str:
        return "the denoiser's marginals against the exact ones"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", "denoiser")

    def find(self) -> MeasuredRows:
        denoiser, _ = models(self.subject, PLAIN)
        distances = denoiser_distance(
            validation(self.subject), denoiser.network, distribution_of(self.subject), denoiser.schedule,
            self.subject.seed, self.draws,
        )  # fmt: skip
        rows = [
            {
                "t_from": low,
                "t_to": high,
                "kl_nats_per_position": distance.kl_nats_per_position.mean,
                "kl_standard_error": distance.kl_nats_per_position.standard_error,
                "nelbo_above_entropy_nats_per_token": distance.nelbo_nats.mean / denoiser.length,
                "nelbo_standard_error": distance.nelbo_nats.standard_error / denoiser.length,
                **self.common(),
            }
            for (low, high), distance in distances.items()
        ]
        return MeasuredRows({"marginal_distance": rows})


@dataclass(frozen=True, kw_only=True)
class ExactEnergyDistance(AbstractMeasurement):
    """A learned energy against log p_theta - log q, by t and by the number of new tokens."""

    energy: str
    steps: tuple[int, ...]
    candidates: int

    @property
    def label(self) -> str:
        return f"{self.energy} against the exact energy"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", "denoiser", self.energy)

    @property
    def cost(self) -> float:
        return 20.0

    def find(self) -> MeasuredRows:
        report = energy_distance(
            validation(self.subject), energy_model(self.subject, self.energy), distribution_of(self.subject),
            self.subject.seed, self.steps, 1, self.candidates,
        )  # fmt: skip
        rows = [self._row("all steps", report.whole)]
        rows += [self._row(f"t {low:g} to {high:g}", distance) for (low, high), distance in report.by_quarter.items()]
        rows += [self._row(f"{low} to {high} new tokens", distance) for (low, high), distance in report.by_new.items()]
        return MeasuredRows({"energy_distance": rows})

    def _row(self, subset: str, distance: EnergyDistance) -> Row:
        row: Row = {"energy": self.energy, "candidates": self.candidates, "subset": subset, "groups": distance.groups}
        for name in (
            "variance_on_samples", "variance_on_candidates", "offset", "choice_total_variation", "choice_kl",
            "exact_gain", "lost_gain",
        ):  # fmt: skip
            estimate = getattr(distance, name)
            row |= {name: estimate.mean, f"{name}_standard_error": estimate.standard_error}
        return row | {"correlation_misleading": distance.correlation_misleading, **self.common()}


@dataclass(frozen=True, kw_only=True)
class ExactSampleDistance(AbstractMeasurement):
    """The texts of one sampler against the distribution of the source."""

    energy: str
    sampler: Sampler
    count: int

    @property
    def label(self) -> str:
        return f"the distribution of {sampler_label(self.energy, self.sampler)}"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", *energy_inputs(self.subject, self.energy))

    @property
    def cost(self) -> float:
        return self.sampler.steps * max(self.sampler.candidates, 4)

    def find(self) -> MeasuredRows:
        denoiser, energy = models(self.subject, self.energy)
        rows = seeds(self.subject.seed, 0, torch.arange(self.count), Purpose.ROWS)
        canvas = torch.full((self.count, denoiser.length), denoiser.network.mask)
        texts = self.sampler.sample(canvas, denoiser.network, energy, denoiser.schedule, rows)
        distance = sample_distance(texts, distribution_of(self.subject), self.subject.seed + REFERENCE_SEED_OFFSET)
        excess, error = distance.excess_nats
        row = {
            **sampler_columns(self.energy, self.sampler),
            "possible_share": distance.possible.mean,
            "excess_nats_per_token": excess / denoiser.length,
            "excess_standard_error": error / denoiser.length,
            "pair_total_variation": distance.pair_total_variation,
            "pair_total_variation_of_source": distance.pair_total_variation_of_source,
            **self.common(),
        }
        return MeasuredRows({"sample_distance": [row | {"sequences": self.count}]})
