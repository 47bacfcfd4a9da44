"""The importance-sampling generator: from a canvas with masks to text (EDLM alg. 1; docs/mathematics.md 4).

Prompts, infilling and unconditional text are one thing: a canvas. Masked places are filled, the rest never changes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.config import Fraction, NonNegative, Positive, PositiveFloat, config
from edlm.schedule import AbstractSchedule
from edlm.speculative import Verifiable, verify
from edlm.streams import Purpose, uniforms
from edlm.transformer import CHUNK, ROWS_MULTIPLE
from edlm.weighing import weigh

EXACT = 0  # as the number of candidates: k -> infinity, for energies that can be sampled exactly


class AnyDenoiser(Protocol):
    """What the sampler and the estimates ask of a denoiser: a network, or a lookup table."""

    mask: int
    vocabulary: int

    def read(self, xt: Tensor, t: Tensor) -> Tensor: ...

    def log_p(self, context: Tensor, where: Tensor) -> Tensor: ...


class AnyEnergy(Protocol):
    """What they ask of an energy: see `edlm.energy.AbstractEnergy`."""

    drafts: bool
    block: int | None

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor: ...


@runtime_checkable
class NormalisedEnergy(AnyEnergy, Protocol):
    """An energy with Z = 1, which samples p_theta exp(-E) itself."""

    def draw(self, xt: Tensor, where: Tensor, context: Tensor, u: Tensor) -> Tensor: ...


@runtime_checkable
class Proposal(NormalisedEnergy, Protocol):
    """A normalised energy whose law others draw their candidates from."""

    def log_p(self, x: Tensor, xt: Tensor, context: Tensor) -> Tensor: ...


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
    """Network passes of each sequence; a candidate counts as one energy call, whatever part of a pass it costs."""
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


@config
class Sampler:
    """The k-candidate sampler, from t = 1 to 0 in `steps` steps."""

    steps: Positive
    candidates: NonNegative = 1
    """k; 1 is plain diffusion, 0 samples p_theta exp(-E) exactly where the energy can (`normalised`)."""
    window: tuple[float, float] = (0.0, 1.0)
    """A step from t to s resamples if window[0] <= t <= window[1]; elsewhere it is a plain diffusion step."""
    temperature: PositiveFloat = 1.0
    """tau of the weights exp(-E / tau)."""
    speculative: bool = False
    """With candidates = 0: verify drafts of the denoiser instead of drawing token by token; the same law."""
    grid: tuple[Fraction, ...] | None = None
    """steps + 1 times from 0 to 1 between which it steps, as `edlm.step_grid` fits them; None: i / steps."""

    def __post_init__(self) -> None:
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window is [from, to] with 0 <= from <= to <= 1; got [{low}, {high}]")
        if self.speculative and self.candidates != EXACT:
            raise ValueError(f"speculative is for exact sampling, candidates = 0; got candidates = {self.candidates}")
        if self.grid is not None:
            ascending = all(s < t for s, t in pairwise(self.grid))
            if len(self.grid) != self.steps + 1 or not ascending or (self.grid[0], self.grid[-1]) != (0, 1):
                raise ValueError(
                    f"grid is steps + 1 = {self.steps + 1} ascending times from 0 to 1; got {list(self.grid)}"
                )

    def times(self) -> Float64[Tensor, " i"]:
        """t_0 = 0 to t_T = 1."""
        if self.grid is not None:
            return torch.tensor(self.grid, dtype=torch.float64)
        return torch.arange(self.steps + 1, dtype=torch.float64) / self.steps

    def in_window(self, t: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        # A hair of tolerance: t = i / steps and a window of 1 / steps must meet in floating point.
        return (t >= self.window[0] - 1e-9) & (t <= self.window[1] + 1e-9)

    @torch.no_grad()
    def sample(
        self,
        xt: Int[Tensor, "b l"],
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        schedule: AbstractSchedule,
        seeds: Int[Tensor, " b"],
        on_step: Callable[[StepResult], None] | None = None,
    ) -> Int[Tensor, "b l"]:
        """The canvas with every masked place filled; each row a function of its own canvas and seed alone.

        Raises ValueError where the canvas holds what is neither a token nor the mask, and BrokenRows, once the others
        are finished, where a row's logits or energies are not numbers.
        """
        _check(xt, denoiser)
        broken = torch.zeros(len(xt), dtype=torch.bool, device=xt.device)
        times = self.times().to(xt.device)
        for i in range(self.steps, 0, -1):
            index = torch.full_like(seeds, i)
            t, s = times[i].expand(len(xt)), times[i - 1].expand(len(xt))
            result = self.step(xt, t, s, index, denoiser, energy, schedule, seeds)
            xt, broken = result.xs, broken | result.broken
            if on_step is not None:
                on_step(result)
        if broken.any():
            raise BrokenRows(torch.nonzero(broken)[:, 0].tolist(), xt)
        return xt

    @torch.no_grad()
    def step(
        self,
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        index: Int[Tensor, " b"],
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        schedule: AbstractSchedule,
        seeds: Int[Tensor, " b"],
    ) -> StepResult:
        """x_s from x_t; every row may stand at its own time. `index` names the step in the row's random streams."""
        masked = xt == denoiser.mask
        u = uniforms(seeds, index, 0, Purpose.REVEAL, (xt.shape[1],))
        revealed = equations.reveal(masked, schedule.reveal(t, s), u)
        moves = revealed.any(dim=1)
        weighed = moves & self.in_window(t) & (self.candidates != 1) & (energy is not None)
        advance = self._exact if self.candidates == EXACT else self._resample
        parts = []
        for rows, how in ((~moves, self._stay), (moves & ~weighed, self._plain), (weighed, advance)):
            if rows.any():
                state = State(xt[rows], t[rows], s[rows], index[rows], seeds[rows], revealed[rows])
                parts.append((rows, how(state, denoiser, energy)))
        return join(parts)

    def _stay(self, now: "State", denoiser: AnyDenoiser, energy: AnyEnergy | None) -> StepResult:
        """Nothing is revealed, so nothing is read."""
        return now.advanced(now.xt, energy, denoiser_calls=0)

    def _plain(self, now: "State", denoiser: AnyDenoiser, energy: AnyEnergy | None) -> StepResult:
        u = uniforms(now.seeds, now.index, 0, Purpose.CANDIDATE, (1, now.xt.shape[1]))
        x, log_p = propose(denoiser, denoiser.read(now.xt, now.t), now.xt, now.revealed, u)
        return now.advanced(x[:, 0], energy, broken=_nan(log_p))

    def _exact(self, now: "State", denoiser: AnyDenoiser, energy: AnyEnergy | None) -> StepResult:
        if not isinstance(energy, NormalisedEnergy):
            raise ValueError(
                f"candidates=0 samples exactly, and {type(energy).__name__} is not normalised; give k >= 1"
            )
        u = now.uniforms(Purpose.CANDIDATE)
        context = denoiser.read(now.xt, now.t)
        if not self.speculative:
            x = energy.draw(now.xt, now.revealed, context, u)
            return now.advanced(x, energy, energy_calls=1, broken=_nan(context))
        if not isinstance(energy, Verifiable):
            raise ValueError(f"speculative sampling verifies a draft, and {type(energy).__name__} cannot")
        draft, log_p = propose(denoiser, context, now.xt, now.revealed, u[:, None])
        found = verify(
            draft[:, 0], log_p[:, 0], now.xt, now.revealed, context, denoiser, energy, now.uniforms(Purpose.KEEP),
            now.uniforms(Purpose.AGAIN),
        )  # fmt: skip
        return replace(now.advanced(found.x, energy, broken=_nan(log_p)), energy_calls=found.passes)

    def _resample(self, now: "State", denoiser: AnyDenoiser, energy: AnyEnergy | None) -> StepResult:
        assert energy is not None
        length, block = now.xt.shape[1], energy.block
        filled = now.xt == denoiser.mask if energy.drafts else now.revealed
        context = denoiser.read(now.xt, now.t)
        u = uniforms(now.seeds, now.index, 0, Purpose.CANDIDATE, (self.candidates, length))
        x, log_p = draw_candidates(denoiser, energy, context, now.xt, filled, u)
        energies, distinct = weigh(energy, x, now.xt, now.t, log_p, context)
        broken = _nan(log_p) | _nan(energies)
        energies = torch.where(broken[:, None, None], 0.0, energies)
        log_v = equations.log_weight(energies, self.temperature)
        # One token needs no joint: resampling it would only sharpen its marginal (docs/mathematics.md 4, finite k).
        joint = equations.sum_by_group(now.revealed.long(), block) > 1
        u_pick = uniforms(now.seeds, now.index, 0, Purpose.PICK, (joint.shape[1],))
        picked = torch.where(joint, equations.pick(log_v, u_pick), 0)
        chosen = x.gather(1, equations.spread_groups(picked, length, block)[:, None])[:, 0]
        result = now.advanced(chosen, energy, energy_calls=self.candidates, broken=broken)
        return replace(
            result,
            energies=torch.where(joint[:, None], energies, torch.nan),
            picked=picked,
            ess=_mean_where(equations.effective_sample_size(log_v), joint),
            distinct=distinct,
        )


@dataclass(frozen=True)
class State:
    """Rows on their way from t to s: what is known, what will be revealed, and the streams they draw from."""

    xt: Int[Tensor, "b l"]
    t: Float[Tensor, " b"]
    s: Float[Tensor, " b"]
    index: Int[Tensor, " b"]
    seeds: Int[Tensor, " b"]
    revealed: Bool[Tensor, "b l"]

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
            xs=equations.carry_over(self.xt, x, revealed),
            revealed=revealed,
            energies=None,
            picked=one.new_zeros(b, groups),
            ess=one.double(),
            distinct=one,
            denoiser_calls=one * denoiser_calls,
            energy_calls=one * energy_calls,
            broken=broken,
        )


def join(parts: list[tuple[Bool[Tensor, " b"], StepResult]]) -> StepResult:
    """One result for all rows, from results for disjoint selections of them."""
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


def propose(
    denoiser: AnyDenoiser,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    u: Float[Tensor, "b k l"],
) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k l"]]:
    """k candidates x ~ p_theta(. | x_t) at the selected positions, x_t elsewhere, and their log-probabilities.

    Positions are taken in chunks, so that [positions, vocabulary] never exceeds `CHUNK` entries.
    """
    x = xt[:, None].expand_as(u).clone()
    by_position = torch.zeros_like(u)
    for chunk in chunks(where, denoiser.vocabulary):
        rows, at = torch.nonzero(chunk, as_tuple=True)
        tokens, log_p = equations.draw(denoiser.log_p(context, chunk), u[rows, :, at])
        x[rows, :, at] = tokens
        by_position[rows, :, at] = log_p.to(by_position.dtype)
    return x, by_position


def proposal_of(energy: AnyEnergy) -> Proposal | None:
    """The energy whose law candidates come from where it is not the denoiser's."""
    return getattr(energy, "proposal", None)


def draw_candidates(
    denoiser: AnyDenoiser,
    energy: AnyEnergy,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    u: Float[Tensor, "b k l"],
) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k g"]]:
    """k candidates for an energy to weigh, from its proposal or else from p_theta, and log p of each by group."""
    if (proposal := proposal_of(energy)) is not None:
        return propose_from(proposal, context, xt, where, u)
    x, by_position = propose(denoiser, context, xt, where, u)
    return x, equations.sum_by_group(by_position, energy.block)


def propose_from(
    proposal: Proposal,
    context: Tensor,
    xt: Int[Tensor, "b l"],
    where: Bool[Tensor, "b l"],
    u: Float[Tensor, "b k l"],
) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k 1"]]:
    """k candidates from the proposal's law at the selected positions, x_t elsewhere, and their log-probabilities."""
    k = u.shape[1]
    x = proposal.draw(
        xt.repeat_interleave(k, 0), where.repeat_interleave(k, 0), context.repeat_interleave(k, 0), u.flatten(0, 1)
    ).unflatten(0, (-1, k))
    return x, proposal.log_p(x, xt, context)[..., None]


def chunks(where: Bool[Tensor, "b l"], vocabulary: int) -> Iterator[Bool[Tensor, "b l"]]:
    size = max(ROWS_MULTIPLE, CHUNK // vocabulary // ROWS_MULTIPLE * ROWS_MULTIPLE)
    count = where.flatten().cumsum(0).view_as(where)
    for start in range(0, int(where.sum()), size):
        yield where & (count > start) & (count <= start + size)


def _nan(values: Tensor) -> Bool[Tensor, " b"]:
    """Which rows hold what is not a number."""
    return values.flatten(1).isnan().any(dim=1)


def _check(xt: Int[Tensor, "b l"], denoiser: AnyDenoiser) -> None:
    wrong = torch.nonzero((xt < 0) | (xt > denoiser.mask))
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ValueError(
            f"row {row} of the canvas holds {xt[row, place].item()} at position {place}; tokens are 0 to "
            f"{denoiser.vocabulary - 1}, and {denoiser.mask} is the mask"
        )


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean over the selected groups of each row; 1 where there is none."""
    count = where.sum(dim=1)
    return torch.where(count > 0, (values * where).sum(dim=1) / count.clamp(min=1), 1.0)
