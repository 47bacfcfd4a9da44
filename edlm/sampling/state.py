"""A step's beginning and its end, for rows that may each stand at their own time."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.interfaces import AnyEnergy
from edlm.rng import Purpose, uniforms


@dataclass(frozen=True)
class StepResult:
    """What one step did to each sequence."""

    t: Float[Tensor, " b"]
    s: Float[Tensor, " b"]
    xs: Int[Tensor, "b l"]
    revealed: Bool[Tensor, "b l"]
    energies: Float[Tensor, "b k g"] | None
    """Of the candidates of rows and groups that were resampled; nan elsewhere. None: nothing was resampled."""
    picked: Int[Tensor, "b g"]
    ess: Float[Tensor, " b"]
    """Effective sample size, a mean over the groups that were resampled; 1 where none was."""
    distinct: Int[Tensor, " b"]
    """How many of the candidates differ anywhere in what was weighed; 1 where nothing was resampled."""
    denoiser_calls: Int[Tensor, " b"]
    energy_calls: Int[Tensor, " b"]
    """Network passes of each sequence; a candidate counts as one energy call, whatever part of a pass it costs, and so
    does an exact draw position by position."""
    accepted: Int[Tensor, " b"]
    """Tokens of a speculative draft that its verification kept, in `energy_calls` passes; 0 where none was verified."""
    broken: Bool[Tensor, " b"]
    """Whether logits or energies of the sequence were not numbers: nothing was revealed in it."""


class BrokenRows(FloatingPointError):
    """Logits or energies of some sequences were not numbers; the others are finished.

    `x` holds all of them; in those of `rows` places are still masked.
    """

    def __init__(self, rows: list[int], x: Int[Tensor, "b l"]) -> None:
        super().__init__(
            f"logits or energies of rows {rows} of {len(x)} are not numbers; the network or its input is broken"
        )
        self.rows, self.x = rows, x


@dataclass(frozen=True)
class StepState:
    """Rows on their way from t to s: what is known, what will change, and the streams they draw from."""

    xt: Int[Tensor, "b l"]
    t: Float[Tensor, " b"]
    s: Float[Tensor, " b"]
    index: Int[Tensor, " b"]
    seeds: Int[Tensor, " b"]
    revealed: Bool[Tensor, "b l"]
    rest: Int[Tensor, "b l"]
    """What every other position will hold: what it holds now, or the mask where it is masked again."""

    @property
    def moves(self) -> Bool[Tensor, " b"]:
        """Which rows reveal anything; the others need no network."""
        return self.revealed.any(dim=1)

    def at(self, rows: Bool[Tensor, " b"] | Int[Tensor, " n"]) -> "StepState":
        """These rows alone."""
        if rows.dtype == torch.bool and rows.all():
            return self
        return StepState(**{field.name: getattr(self, field.name)[rows] for field in fields(StepState)})

    def stayed(self, energy: AnyEnergy | None) -> StepResult:
        """The rows without anything new: nothing is revealed, so nothing was read."""
        return self.advanced(self.xt, energy, denoiser_calls=0)

    def uniforms(self, purpose: Purpose) -> Float64[Tensor, "b l"]:
        """One for every position of every row."""
        return uniforms(self.seeds, self.index, 0, purpose, (1, self.xt.shape[1]))[:, 0]

    def advanced(
        self,
        x: Int[Tensor, "b l"],
        energy: AnyEnergy | None,
        denoiser_calls: int = 1,
        energy_calls: int = 0,
        broken: Bool[Tensor, " b"] | None = None,
    ) -> StepResult:
        """The rows with x at the revealed positions, the broken ones as they were; nothing resampled."""
        b, length = self.xt.shape
        broken = torch.zeros(b, dtype=torch.bool, device=x.device) if broken is None else broken
        revealed = self.revealed & ~broken[:, None]
        one = torch.ones(b, dtype=torch.long, device=x.device)
        groups = equations.group_count(length, None if energy is None else energy.block)
        return StepResult(
            t=self.t,
            s=self.s,
            xs=equations.carry_over(torch.where(broken[:, None], self.xt, self.rest), x, revealed),
            revealed=revealed,
            energies=None,
            picked=one.new_zeros(b, groups),
            ess=one.double(),
            distinct=one,
            denoiser_calls=one * denoiser_calls,
            energy_calls=one * energy_calls,
            accepted=one * 0,
            broken=broken,
        )


def join(parts: list[tuple[Bool[Tensor, " b"], StepResult]]) -> StepResult:
    """One result for all rows, from results for disjoint selections that together are all of them."""
    if len(parts) == 1:
        return parts[0][1]
    joined = {}
    for field in fields(StepResult):
        values = [(rows, value) for rows, part in parts if (value := getattr(part, field.name)) is not None]
        joined[field.name] = None
        if values:
            rows, value = values[0]
            blank = torch.nan if field.name == "energies" else 0
            whole = value.new_full((rows.shape[0], *value.shape[1:]), blank)
            for rows, value in values:
                whole[rows] = value
            joined[field.name] = whole
    return StepResult(**joined)
