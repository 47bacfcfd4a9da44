"""Calibration measurement: whether an energy separates data from drawn samples, and whether its odds are reliable."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from edlm import equations
from edlm.evaluation.calibration import energies_of_pairs
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    MeasuredRows,
    Row,
    energy_model,
    validation,
)

QUARTERS = 4
BINS = 10
KEPT = 400  # energies per side that are kept for a histogram


@dataclass(frozen=True, kw_only=True)
class Calibration(AbstractMeasurement):
    """Energies of data and of drawn samples at the same x_t, by quarter of t; all masked positions are new."""

    energy: str
    draws: int

    @property
    def label(self) -> str:
        return f"calibration of {self.energy}"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("data", "denoiser", self.energy)

    @property
    def cost(self) -> float:
        return 2 * self.draws

    def find(self) -> MeasuredRows:
        x0, model, rows = validation(self.subject), energy_model(self.subject, self.energy), []
        for quarter in range(QUARTERS):
            low, high = quarter / QUARTERS, (quarter + 1) / QUARTERS
            data, samples = energies_of_pairs(x0, model, self.subject.seed, self.draws, (low, high))
            rows.append(
                {
                    "energy": self.energy,
                    "t_from": low,
                    "t_to": high,
                    "auc": auc(data, samples),
                    "bins": reliability(data, samples),
                    "data_energies": data[:KEPT].tolist(),
                    "sample_energies": samples[:KEPT].tolist(),
                    **self.common(),
                }
            )
        return MeasuredRows({"calibration": rows})


def auc(data: Float64[Tensor, " n"], samples: Float64[Tensor, " m"]) -> float:
    """Return P(data has lower energy than a drawn sample), ties counting one half (Mann and Whitney 1947)."""
    below = (data[:, None] < samples).double() + 0.5 * (data[:, None] == samples).double()
    return below.mean().item()


def reliability(data: Float64[Tensor, " n"], samples: Float64[Tensor, " m"]) -> list[Row]:
    """Return the predicted and the observed share of data, in ten bins of the prediction sigmoid(-E).

    Half of all samples count as data. The shares agree for the optimum of `binary` NCE (Z = 1); `ranking` leaves a
    constant of x_t free, so they may not.
    """
    predicted = torch.sigmoid(equations.log_weight(torch.cat([data, samples])))
    # Each side has a total weight of one half, whatever its size.
    weights = torch.cat([torch.full_like(data, 0.5 / len(data)), torch.full_like(samples, 0.5 / len(samples))])
    is_data = torch.cat([torch.ones_like(data), torch.zeros_like(samples)])
    bin_index = (predicted * BINS).long().clamp(max=BINS - 1)
    rows = []
    for i in range(BINS):
        inside = bin_index == i
        if inside.any():
            share = weights[inside] / weights[inside].sum()
            rows.append(
                {
                    "predicted": (share * predicted[inside]).sum().item(),
                    "observed": (share * is_data[inside]).sum().item(),
                    "count": int(inside.sum()),
                }
            )
    return rows
