"""Fitted step times: the times of T steps, fitted on training sequences and measured on validation sequences."""

from dataclasses import dataclass, replace

from edlm.data.batches import whole
from edlm.data.stored_split import open_split
from edlm.interfaces import Model
from edlm.likelihood.bounds import sampler_bound
from edlm.likelihood.estimate import difference
from edlm.planning.fitted_step_times import best_grid, step_costs
from edlm.sampling.sampler import Sampler
from workflows.evaluation.measurements.likelihood import sampler_columns, sampler_label
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    energy_inputs,
    models,
    validation,
)

FITTED_ON = 64  # training sequences
FITTED = "train"


@dataclass(frozen=True, kw_only=True)
class FittedGrid(AbstractMeasurement):
    """The bound on the best grid of each number of steps, paired with the bound on equal steps."""

    energy: str
    sampler: Sampler
    """k, window and temperature."""
    steps: tuple[int, ...]
    points: int
    """Equally spaced times from which a grid is chosen."""

    @property
    def label(self) -> str:
        return f"fitted steps of {sampler_label(self.energy, self.sampler)}"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", *energy_inputs(self.subject, self.energy))

    @property
    def cost(self) -> float:
        return self.points**2 / 2 * max(self.sampler.candidates, 4)

    def find(self) -> MeasuredRows:
        denoiser, energy = models(self.subject, self.energy)
        network, schedule, seed = denoiser.network, denoiser.schedule, self.subject.seed
        training = whole(open_split(self.subject.data, FITTED, FITTED_ON), denoiser.length, FITTED_ON)
        costs = step_costs(training, Model(network, energy, schedule), self.sampler, self.points, seed, draws=1)
        x0, rows = validation(self.subject), []
        for steps in self.steps:
            times, _ = best_grid(costs, steps)
            equal = replace(self.sampler, steps=steps)
            fitted = replace(equal, grid=times)
            bounds = [sampler_bound(x0, network, energy, schedule, sampler, seed, 1) for sampler in (equal, fitted)]
            gain = difference(*bounds)
            rows.append(
                {
                    **sampler_columns(self.energy, equal),
                    "times": list(times),
                    "bound_nats_per_token": bounds[1].mean / denoiser.length,
                    "standard_error": bounds[1].standard_error / denoiser.length,
                    "gain_over_equal_steps": gain.mean / denoiser.length,
                    "gain_standard_error": gain.standard_error / denoiser.length,
                    **self.common(),
                }
            )
        return MeasuredRows({"step_grids": rows})
