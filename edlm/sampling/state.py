"""State before a step and result after it, for rows that may be at different times."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.constraints.constraint import RowConstraints
from edlm.device_copies import fetched, selected_indices, sent
from edlm.rng import Purpose, uniforms


@dataclass(frozen=True)
class StepResult:
    """Result of one step, per sequence."""

    t: Float[Tensor, " b"]
    s: Float[Tensor, " b"]
    xs: Int[Tensor, "b l"]
    unmasked: Bool[Tensor, "b l"]
    energies: Float[Tensor, "b k g"] | None
    """Energies of the candidates of resampled rows and groups, NaN elsewhere; None if nothing was resampled."""
    picked: Int[Tensor, "b g"]
    ess: Float[Tensor, " b"]
    """Effective sample size, averaged over the resampled groups; 1 if there are none."""
    distinct: Int[Tensor, " b"]
    """Number of candidates that are distinct in the scored positions; 1 if nothing was resampled."""
    denoiser_calls: Int[Tensor, " b"]
    energy_calls: Int[Tensor, " b"]
    """Both are network passes per sequence. A candidate counts as one energy call, whatever part of a pass it costs;
    so does an exact draw position by position."""
    accepted: Int[Tensor, " b"]
    """Tokens of a speculative draft kept by verification, in `energy_calls` passes; 0 if no draft was verified."""
    broken: Bool[Tensor, " b"]
    """Whether logits or energies of the sequence were not numbers; nothing is unmasked in such a sequence."""
    candidates: Int[Tensor, "b k l"] | None = None
    """Tokens of the candidates that were scored; None if nothing was resampled."""


class NonFiniteRows(FloatingPointError):
    """Error for sequences whose logits or energies were not numbers; the other sequences are finished.

    `x` holds all sequences; those of `rows` still have masked positions.
    """

    def __init__(self, rows: list[int], x: Int[Tensor, "b l"]) -> None:
        super().__init__(
            f"logits or energies of rows {rows} of {len(x)} are not numbers; the network or its input is broken"
        )
        self.rows, self.x = rows, x


@dataclass(frozen=True)
class StepState:
    """Rows between t and s: their tokens, the positions that change, and the seeds of their random streams.

    The course of a step is decided by the state on the host, so that a device need not be waited for.
    """

    xt: Int[Tensor, "b l"]
    t: Float[Tensor, " b"]
    s: Float[Tensor, " b"]
    index: Int[Tensor, " b"]
    seeds: Int[Tensor, " b"]
    unmasked: Bool[Tensor, "b l"]
    unselected_tokens: Int[Tensor, "b l"]
    """Tokens at s of all other positions: the current ones, or the mask where a position is masked again."""
    constraints: RowConstraints | None = None
    """Constraint of each row; None: no row has one."""
    host: "StepState | None" = None
    """The same rows on the host; None where this state is on the host itself."""

    @property
    def on_host(self) -> "StepState":
        """Return the same rows on the host."""
        if self.host is not None:
            return self.host
        if self.xt.device.type == "cpu":
            return self
        return StepState(*fetched(self._tensors()), constraints=self.constraints)

    def on_device(self, device: torch.device, xt: Int[Tensor, "b l"] | None = None) -> "StepState":
        """Return this state of the host on the device, by one copy; `xt` are its tokens, if they are there already."""
        if device.type == "cpu":
            return self
        values, same = self._tensors(), self.unselected_tokens is self.xt
        values = [values[0] if xt is None else xt, *values[1:-1], *([] if same else values[-1:])]
        there = sent(values, device)
        return StepState(*there, *(there[:1] if same else []), constraints=self.constraints, host=self)

    def with_unmasked(self, unmasked: Bool[Tensor, "b l"]) -> "StepState":
        """Return the state with other positions to unmask, which are fetched."""
        if unmasked is self.unmasked:
            return self
        host = None if self.host is None else replace(self.host, unmasked=fetched([unmasked])[0])
        return replace(self, unmasked=unmasked, host=host)

    def _tensors(self) -> list[Tensor]:
        return [self.xt, self.t, self.s, self.index, self.seeds, self.unmasked, self.unselected_tokens]

    @property
    def moves(self) -> Bool[Tensor, " b"]:
        """Which rows unmask at least one position; the others need no network."""
        return self.unmasked.any(dim=1)

    def at(self, rows: Bool[Tensor, " b"] | Int[Tensor, " n"]) -> "StepState":
        """Return the selected rows; of a state with a `host`, the rows are selected on the host, too."""
        rows = rows if self.host is None else fetched([rows])[0]
        if rows.dtype == torch.bool and rows.all():
            return self
        index = selected_indices(rows, self.xt.device) if rows.dtype == torch.bool else sent([rows], self.xt.device)
        same = self.unselected_tokens is self.xt
        tensors = [value[index[0]] for value in (self._tensors()[:-1] if same else self._tensors())]
        return StepState(
            *tensors,
            *(tensors[:1] if same else []),
            constraints=None if self.constraints is None else self.constraints[rows],
            host=None if self.host is None else self.host.at(rows),
        )

    @property
    def constrained(self) -> Bool[Tensor, " b"]:
        """Which rows have a constraint, on the host."""
        none = torch.zeros(len(self.xt), dtype=torch.bool)
        return none if self.constraints is None else self.constraints.constrained

    @property
    def length(self) -> int:
        """Number of positions of a canvas."""
        return self.xt.shape[1]

    def unchanged(self, block: int | None) -> StepResult:
        """Return the result for rows that unmask nothing and therefore need no denoiser call."""
        return self.advanced(self.xt, block, denoiser_calls=0)

    def uniforms(self, purpose: Purpose, *shape: int) -> Float64[Tensor, "b ..."]:
        """Return uniforms of this shape for every row, from the stream of its seed, its step and the purpose."""
        if self.host is None:
            return uniforms(self.seeds, self.index, 0, purpose, shape)
        return uniforms(self.host.seeds, self.host.index, 0, purpose, shape, self.xt.device)

    def advanced(
        self,
        x: Int[Tensor, "b l"],
        block: int | None,
        denoiser_calls: int = 1,
        energy_calls: int = 0,
        broken: Bool[Tensor, " b"] | None = None,
    ) -> StepResult:
        """Return the result with x at the unmasked positions, broken rows unchanged and nothing resampled.

        `block`: length of the energy's position groups.
        """
        b = len(self.xt)
        broken = torch.zeros(b, dtype=torch.bool, device=x.device) if broken is None else broken
        unmasked = self.unmasked & ~broken[:, None]
        ones = torch.ones(b, dtype=torch.long, device=x.device)
        groups = equations.group_count(self.length, block)
        return StepResult(
            t=self.t,
            s=self.s,
            xs=equations.carry_over(torch.where(broken[:, None], self.xt, self.unselected_tokens), x, unmasked),
            unmasked=unmasked,
            energies=None,
            picked=ones.new_zeros(b, groups),
            ess=ones.double(),
            distinct=ones,
            denoiser_calls=ones * denoiser_calls,
            energy_calls=ones * energy_calls,
            accepted=ones * 0,
            broken=broken,
        )


def join(parts: list[tuple[Bool[Tensor, " b"], StepResult]]) -> StepResult:
    """Merge the results of disjoint selections of rows, which together cover all rows, into one result.

    The selections are best on the host, for a device that need not be waited for.
    """
    if len(parts) == 1:
        return parts[0][1]
    b, device = len(parts[0][0]), parts[0][1].xs.device
    parts = [(selected_indices(rows, device)[0], result) for rows, result in parts]
    joined = {}
    for field in fields(StepResult):
        values = [(rows, value) for rows, part in parts if (value := getattr(part, field.name)) is not None]
        joined[field.name] = None
        if values:
            blank = torch.nan if field.name == "energies" else 0
            _, value = values[0]
            whole = value.new_full((b, *value.shape[1:]), blank)
            for rows, value in values:
                whole[rows] = value.to(whole.dtype)  # energies with a constraint are float64
            joined[field.name] = whole
    return StepResult(**joined)
