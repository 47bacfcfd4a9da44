"""A cell of calibration: does an energy tell data from drafts, and are its odds to be believed?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from edlm import equations
from edlm.evaluation.calibration import energies_of_pairs
from workflows.evaluation.measurements.measurement import AbstractMeasurement, MeasuredRows, Row, models, validation

QUARTERS = 4
BINS = 10
KEPT = 400  # energies of each side that are kept for a histogram


@dataclass(frozen=True, kw_only=True)
class Calibration(AbstractMeasurement):
    """Energies of data and of drafts at the same x_t, by quarter of t, everything masked being new."""

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
        denoiser, energy = models(self.subject, self.energy)
        assert energy is not None
        x0, seed = validation(self.subject), self.subject.seed
        rows = []
        for quarter in range(QUARTERS):
            low, high = quarter / QUARTERS, (quarter + 1) / QUARTERS
            data, drafts = energies_of_pairs(
                x0, denoiser.network, energy, denoiser.schedule, seed, self.draws, (low, high)
            )
            rows.append(
                {
                    "energy": self.energy,
                    "t_from": low,
                    "t_to": high,
                    "auc": auc(data, drafts),
                    "bins": reliability(data, drafts),
                    "data_energies": data[:KEPT].tolist(),
                    "draft_energies": drafts[:KEPT].tolist(),
                    **self.common(),
                }
            )
        return MeasuredRows({"calibration": rows})


def auc(data: Float64[Tensor, " n"], drafts: Float64[Tensor, " m"]) -> float:
    """P(a data sample has lower energy than a draft), ties counting one half (Mann and Whitney 1947)."""
    below = (data[:, None] < drafts).double() + 0.5 * (data[:, None] == drafts).double()
    return below.mean().item()


def reliability(data: Float64[Tensor, " n"], drafts: Float64[Tensor, " m"]) -> list[Row]:
    """What sigmoid(-E) says of a sample being data, where half of all are, and how many are; by tenths of what it says.

    For the optimum of `binary` NCE they agree (Z = 1); `ranking` leaves a constant of x_t free, and they may not.
    """
    predicted = torch.sigmoid(equations.log_weight(torch.cat([data, drafts])))
    # Each side weighs one half, however many there are of it.
    weights = torch.cat([torch.full_like(data, 0.5 / len(data)), torch.full_like(drafts, 0.5 / len(drafts))])
    is_data = torch.cat([torch.ones_like(data), torch.zeros_like(drafts)])
    place = (predicted * BINS).long().clamp(max=BINS - 1)
    found = []
    for one in range(BINS):
        here = place == one
        if here.any():
            share = weights[here] / weights[here].sum()
            found.append(
                {
                    "predicted": (share * predicted[here]).sum().item(),
                    "observed": (share * is_data[here]).sum().item(),
                    "count": int(here.sum()),
                }
            )
    return found
