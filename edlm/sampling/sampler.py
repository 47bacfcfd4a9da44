"""Importance-sampling generator: from a canvas with masks to text (EDLM alg. 1; docs/mathematics.md 4).

Prompts, infilling and unconditional text are all canvases: masked positions are filled, the others never change.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

import pydantic
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.config import Fraction, NonNegative, Positive, config
from edlm.cooperative import Cooperative, run_to_end
from edlm.interfaces import AnyDenoiser, AnyEnergy, NormalisedEnergy, Verifiable, proposal_of, read
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import draw_candidates, propose, weighing
from edlm.sampling.speculative import verifying
from edlm.sampling.state import BrokenRows, StepResult, StepState, join
from edlm.sampling.unmasking import AtRandom, Remasking, RevealConfig
from edlm.schedule import AbstractSchedule

LEAST_TEMPERATURE = 1e-6  # of the importance weights: below it they only tell which energy is the lowest
EXACT = 0  # as the number of candidates: k -> infinity, for energies that can be sampled exactly


@config
class Sampler:
    """k-candidate sampler from t = 1 to 0 in `steps` steps."""

    steps: Positive
    candidates: NonNegative = 1
    """k; 1 is plain diffusion, 0 samples p_theta exp(-E) exactly if the energy supports it (`normalised`)."""
    window: tuple[float, float] = (0.0, 1.0)
    """A step from t to s resamples if window[0] <= t <= window[1]; otherwise it is a plain diffusion step."""
    energy_temperature: Annotated[float, pydantic.Field(ge=LEAST_TEMPERATURE)] = 1.0
    """tau of the importance weights exp(-E / tau)."""
    speculative: bool = False
    """With candidates = 0: verify drafts of the denoiser instead of drawing token by token; same distribution.

    Which is faster depends on the networks and on the number of tokens per step: `workflows.benchmark` times both."""
    grid: tuple[Fraction, ...] | None = None
    """steps + 1 times from 0 to 1 that delimit the steps, as `edlm.planning.step_grid` fits them; None: i / steps."""
    revealing: Annotated[RevealConfig, pydantic.Field(discriminator="kind")] = AtRandom()
    """Rule that selects the positions to unmask. All but `at_random` change the distribution of masked diffusion."""

    def __post_init__(self) -> None:
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window is [from, to] with 0 <= from <= to <= 1; got [{low}, {high}]")
        if self.candidates == EXACT and self.energy_temperature != 1:
            raise ValueError(
                f"candidates = 0 draws from p_theta exp(-E) itself, at temperature 1; got energy_temperature = "
                f"{self.energy_temperature:g}: leave it at 1, or give k >= 1"
            )
        if self.speculative and self.candidates != EXACT:
            raise ValueError(f"speculative is for exact sampling, candidates = 0; got candidates = {self.candidates}")
        if self.grid is not None:
            ascending = all(s < t for s, t in pairwise(self.grid))
            if len(self.grid) != self.steps + 1 or not ascending or (self.grid[0], self.grid[-1]) != (0, 1):
                raise ValueError(
                    f"grid is steps + 1 = {self.steps + 1} ascending times from 0 to 1; got {list(self.grid)}"
                )

    def times(self) -> Float64[Tensor, " i"]:
        """Return the times t_0 = 0 to t_T = 1."""
        if self.grid is not None:
            return torch.tensor(self.grid, dtype=torch.float64)
        return torch.arange(self.steps + 1, dtype=torch.float64) / self.steps

    def in_window(self, t: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        # Tolerance for rounding: t = i / steps must count as equal to a window bound of i / steps.
        return (t >= self.window[0] - 1e-9) & (t <= self.window[1] + 1e-9)

    def sample(
        self,
        xt: Int[Tensor, "b l"],
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        schedule: AbstractSchedule,
        seeds: Int[Tensor, " b"],
        on_step: Callable[[StepResult], None] | None = None,
    ) -> Int[Tensor, "b l"]:
        """Return the canvas with every masked position filled; each row depends on its own canvas and seed only.

        Raise ValueError if the canvas holds an id that is neither a token nor the mask, and BrokenRows, once the other
        rows are finished, if a row's logits or energies are not numbers.
        """
        return sample_in_turn([(self, energy)] * self.steps, xt, denoiser, schedule, seeds, on_step)

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
        given: Bool[Tensor, "b l"] | None = None,
    ) -> StepResult:
        """Compute x_s from x_t; rows may be at different times. `index` is the step in each row's random streams.

        `given`: positions where the canvas held text from the start; required by a sampler that remasks.
        """
        state = self.reveal(xt, t, s, index, denoiser, schedule, seeds, given)
        parts, moves = [], state.moves
        if not moves.all():
            parts.append((~moves, state.at(~moves).stayed(energy)))
        if moves.any():
            moving = state.at(moves)
            context = read(denoiser, moving.xt, moving.t, self.reads(moving, denoiser, energy))
            parts.append((moves, self.advance(moving, context, denoiser, energy)))
        return join(parts)

    def reveal(
        self,
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        index: Int[Tensor, " b"],
        denoiser: AnyDenoiser,
        schedule: AbstractSchedule,
        seeds: Int[Tensor, " b"],
        given: Bool[Tensor, "b l"] | None = None,
    ) -> StepState:
        """Return the rows and their changes between t and s, which depend on `revealing` alone and on no network."""
        masked, shape = xt == denoiser.mask, (xt.shape[1],)
        share, remasking = self.revealing.shares(t, s, schedule)
        revealed = equations.reveal(masked, share, uniforms(seeds, index, 0, Purpose.REVEAL, shape))
        rest = xt
        if isinstance(self.revealing, Remasking):
            assert given is not None
            u_remask = uniforms(seeds, index, 0, Purpose.REMASK, shape)
            rest = torch.where(equations.reveal(~masked & ~given, remasking, u_remask), denoiser.mask, xt)
        return StepState(xt, t, s, index, seeds, revealed, rest)

    def advance(self, now: StepState, context: Tensor, denoiser: AnyDenoiser, energy: AnyEnergy | None) -> StepResult:
        """Return the rows at s; each unmasks at least one position. `context` is the denoiser's `read` of the rows.

        It is an argument so that rows of different samplers can share one pass of the denoiser.
        """
        return run_to_end(self.advancing(now, context, denoiser, energy))

    @torch.no_grad()
    def advancing(
        self,
        now: StepState,
        context: Tensor,
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        tokens_at_once: int | None = None,
    ) -> Cooperative[StepResult]:
        """Return `advance` as cooperative work; `tokens_at_once` limits an energy call (None: `TOKENS_AT_ONCE`)."""
        now = replace(now, revealed=self.revealing.settle(now.revealed, now.xt, context, denoiser))
        scored = self.weighs(now.t, energy) & self.chooses(now.revealed, energy)
        if not scored.any():
            return self._plain(now, context, denoiser, energy)
        parts = []
        if not scored.all():
            plain = ~scored
            parts.append((plain, self._plain(now.at(plain), context[plain], denoiser, energy)))
            context = context[scored]
        rows = (now.at(scored), context, denoiser, energy)
        if self.candidates == EXACT:
            parts.append((scored, (yield from self._exact(*rows))))
        else:
            parts.append((scored, (yield from self._resample(*rows, tokens_at_once))))
        return join(parts)

    def reads(self, now: StepState, denoiser: AnyDenoiser, energy: AnyEnergy | None) -> Bool[Tensor, "b l"]:
        """Return where `advance` reads the context: positions it may unmask, or all masked ones for whole sequences."""
        masked = now.xt == denoiser.mask
        needed = self.revealing.open(now.revealed, masked)
        if energy is None or not energy.whole_sequence:
            return needed
        return needed | (self.weighs(now.t, energy)[:, None] & masked)

    def weighs(self, t: Float[Tensor, " b"], energy: AnyEnergy | None) -> Bool[Tensor, " b"]:
        """Return whether a step from t may call the energy."""
        if energy is None or self.candidates == 1:
            return torch.zeros_like(t, dtype=torch.bool)
        return self.in_window(t)

    def chooses(self, revealed: Bool[Tensor, "b l"], energy: AnyEnergy | None) -> Bool[Tensor, " b"]:
        """Return whether the energy has anything to decide: a single token needs no joint and is drawn from p_theta.

        Exact draws, and candidates of a proposal, follow the energy's own distribution for any number of tokens.
        """
        if energy is None or self.candidates == EXACT or proposal_of(energy) is not None:
            return revealed.any(dim=1)
        return (equations.sum_by_group(revealed.long(), energy.block) > 1).any(dim=1)

    def _plain(self, now: StepState, context: Tensor, denoiser: AnyDenoiser, energy: AnyEnergy | None) -> StepResult:
        u = uniforms(now.seeds, now.index, 0, Purpose.CANDIDATE, (1, now.xt.shape[1]))
        x, log_p = propose(denoiser, context, now.xt, now.revealed, u)
        return now.advanced(x[:, 0], energy, broken=_nan(log_p))

    def _exact(
        self, now: StepState, context: Tensor, denoiser: AnyDenoiser, energy: AnyEnergy | None
    ) -> Cooperative[StepResult]:
        if not isinstance(energy, NormalisedEnergy):
            raise ValueError(
                f"candidates=0 samples exactly, and {type(energy).__name__} is not normalised; give k >= 1"
            )
        u = now.uniforms(Purpose.CANDIDATE)
        filled = equations.up_to_last(now.xt == denoiser.mask, now.revealed) if energy.whole_sequence else now.revealed
        if not self.speculative:
            x, log_p = yield from energy.draw(now.xt, filled, context, u)
            return now.advanced(x, energy, energy_calls=1, broken=_nan(context) | _nan(log_p))
        if not isinstance(energy, Verifiable):
            raise ValueError(f"speculative sampling verifies a draft, and {type(energy).__name__} cannot")
        draft, log_p = propose(denoiser, context, now.xt, filled, u[:, None])
        verified = yield from verifying(
            draft[:, 0], log_p[:, 0], now.xt, filled, context, denoiser, energy, now.uniforms(Purpose.KEEP),
            now.uniforms(Purpose.AGAIN),
        )  # fmt: skip
        result = now.advanced(verified.x, energy, broken=_nan(log_p) | verified.broken)
        return replace(result, energy_calls=verified.passes, accepted=verified.accepted)

    def _resample(
        self,
        now: StepState,
        context: Tensor,
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        tokens_at_once: int | None,
    ) -> Cooperative[StepResult]:
        assert energy is not None
        length, block = now.xt.shape[1], energy.block
        filled = now.xt == denoiser.mask if energy.whole_sequence else now.revealed
        u = uniforms(now.seeds, now.index, 0, Purpose.CANDIDATE, (self.candidates, length))
        x, log_p = draw_candidates(denoiser, energy, context, now.xt, filled, u)
        # A single token needs no joint: resampling would only sharpen its marginal (docs/mathematics.md 4, finite k).
        joint = equations.sum_by_group(now.revealed.long(), block) > 1
        # Groups are independent given x_t, so those that are not resampled stay masked in the input of a step energy.
        scored = x if energy.whole_sequence else torch.where(_everywhere(joint, length, block), x, now.xt[:, None])
        energies, distinct = yield from weighing(energy, scored, now.xt, now.t, log_p, context, tokens_at_once)
        # E = inf marks an impossible candidate; E = -inf would be an infinite weight, which is always an error.
        broken = _nan(log_p) | _nan(energies) | (energies == -torch.inf).flatten(1).any(dim=1)
        energies = torch.where(broken[:, None, None], 0.0, energies)
        log_v = equations.log_weight(energies.double(), self.energy_temperature)  # E / tau may overflow float32
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


@torch.no_grad()
def sample_in_turn(
    turns: Sequence[tuple[Sampler, AnyEnergy | None]],
    xt: Int[Tensor, "b l"],
    denoiser: AnyDenoiser,
    schedule: AbstractSchedule,
    seeds: Int[Tensor, " b"],
    on_step: Callable[[StepResult], None] | None = None,
) -> Int[Tensor, "b l"]:
    """Run `Sampler.sample` with a separate sampler and energy for each step, from t = 1 on, all on the same grid."""
    _check(xt, denoiser)
    if not len(xt):
        return xt
    broken, given = torch.zeros(len(xt), dtype=torch.bool, device=xt.device), xt != denoiser.mask
    times = turns[0][0].times().to(xt.device)
    for i, (sampler, energy) in zip(range(len(turns), 0, -1), turns, strict=True):
        index = torch.full_like(seeds, i)
        t, s = times[i].expand(len(xt)), times[i - 1].expand(len(xt))
        result = sampler.step(xt, t, s, index, denoiser, energy, schedule, seeds, given)
        xt, broken = result.xs, broken | result.broken
        if on_step is not None:
            on_step(result)
    if broken.any():
        raise BrokenRows(torch.nonzero(broken)[:, 0].tolist(), xt)
    return xt


def _everywhere(groups: Bool[Tensor, "b g"], length: int, block: int | None) -> Bool[Tensor, "b 1 l"]:
    return equations.spread_groups(groups, length, block)[:, None]


def _nan(values: Tensor) -> Bool[Tensor, " b"]:
    """Return which rows contain NaN."""
    return values.flatten(1).isnan().any(dim=1)


def _check(xt: Int[Tensor, "b l"], denoiser: AnyDenoiser) -> None:
    invalid = torch.nonzero((xt < 0) | (xt > denoiser.mask))
    if len(invalid):
        row, position = invalid[0].tolist()
        raise ValueError(
            f"row {row} of the canvas holds {xt[row, position].item()} at position {position}; tokens are 0 to "
            f"{denoiser.vocabulary - 1}, and {denoiser.mask} is the mask"
        )


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean over the selected groups of each row; 1 where none is selected."""
    count = where.sum(dim=1)
    return torch.where(count > 0, (values * where).sum(dim=1) / count.clamp(min=1), 1.0)
