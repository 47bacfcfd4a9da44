"""The importance-sampling generator: from a canvas with masks to text (EDLM alg. 1; docs/mathematics.md 4).

Prompts, infilling and unconditional text are one thing: a canvas. Masked places are filled, the rest never changes.
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
from edlm.cooperative import Bites, finished
from edlm.interfaces import AnyDenoiser, AnyEnergy, NormalisedEnergy, Verifiable, proposal_of, read
from edlm.rng import Purpose, uniforms
from edlm.sampling.candidates import draw_candidates, propose, weighing
from edlm.sampling.speculative import verifying
from edlm.sampling.state import BrokenRows, StepResult, StepState, join
from edlm.sampling.unmasking import AtRandom, Remasking, RevealConfig
from edlm.schedule import AbstractSchedule

LEAST_TEMPERATURE = 1e-6  # of the weights: below it they tell nothing but which energy is the least
EXACT = 0  # as the number of candidates: k -> infinity, for energies that can be sampled exactly


@config
class Sampler:
    """The k-candidate sampler, from t = 1 to 0 in `steps` steps."""

    steps: Positive
    candidates: NonNegative = 1
    """k; 1 is plain diffusion, 0 samples p_theta exp(-E) exactly where the energy can (`normalised`)."""
    window: tuple[float, float] = (0.0, 1.0)
    """A step from t to s resamples if window[0] <= t <= window[1]; elsewhere it is a plain diffusion step."""
    energy_temperature: Annotated[float, pydantic.Field(ge=LEAST_TEMPERATURE)] = 1.0
    """tau of the weights exp(-E / tau)."""
    speculative: bool = False
    """With candidates = 0: verify drafts of the denoiser instead of drawing token by token; the same law.

    Which is faster depends on the networks and on how many tokens a step reveals: `workflows.benchmark` times both."""
    grid: tuple[Fraction, ...] | None = None
    """steps + 1 times from 0 to 1 between which it steps, as `edlm.planning.step_grid` fits them; None: i / steps."""
    revealing: Annotated[RevealConfig, pydantic.Field(discriminator="kind")] = AtRandom()
    """What a step reveals. Anything but `at_random` is another law than that of masked diffusion."""

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
        """t_0 = 0 to t_T = 1."""
        if self.grid is not None:
            return torch.tensor(self.grid, dtype=torch.float64)
        return torch.arange(self.steps + 1, dtype=torch.float64) / self.steps

    def in_window(self, t: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        # A hair of tolerance: t = i / steps and a window of 1 / steps must meet in floating point.
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
        """The canvas with every masked place filled; each row a function of its own canvas and seed alone.

        Raises ValueError where the canvas holds what is neither a token nor the mask, and BrokenRows, once the others
        are finished, where a row's logits or energies are not numbers.
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
        """x_s from x_t; every row may stand at its own time. `index` names the step in the row's random streams.

        `given` are the places where the canvas held text from the start; a sampler that remasks must know them.
        """
        now = self.reveal(xt, t, s, index, denoiser, schedule, seeds, given)
        parts, moves = [], now.moves
        if not moves.all():
            parts.append((~moves, now.at(~moves).stayed(energy)))
        if moves.any():
            going = now.at(moves)
            context = read(denoiser, going.xt, going.t, self.reads(going, denoiser, energy))
            parts.append((moves, self.advance(going, context, denoiser, energy)))
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
        """The rows and what changes in each between t and s: it depends on no network, and on `revealing` alone."""
        masked, places = xt == denoiser.mask, (xt.shape[1],)
        share, again = self.revealing.shares(t, s, schedule)
        revealed = equations.reveal(masked, share, uniforms(seeds, index, 0, Purpose.REVEAL, places))
        rest = xt
        if isinstance(self.revealing, Remasking):
            assert given is not None
            u = uniforms(seeds, index, 0, Purpose.REMASK, places)
            rest = torch.where(equations.reveal(~masked & ~given, again, u), denoiser.mask, xt)
        return StepState(xt, t, s, index, seeds, revealed, rest)

    def advance(self, now: StepState, context: Tensor, denoiser: AnyDenoiser, energy: AnyEnergy | None) -> StepResult:
        """The rows at s; each reveals something. `context` is what the denoiser read in them.

        So rows of samplers that differ share one pass of the denoiser, and part after it.
        """
        return finished(self.advancing(now, context, denoiser, energy))

    @torch.no_grad()
    def advancing(
        self,
        now: StepState,
        context: Tensor,
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        tokens_at_once: int | None = None,
    ) -> Bites[StepResult]:
        """As `advance`, in bites: in each at most so many tokens enter the energy (None: as many as memory bears)."""
        now = replace(now, revealed=self.revealing.settle(now.revealed, now.xt, context, denoiser))
        weighed = self.weighs(now.t, energy) & self.chooses(now.revealed, energy)
        if not weighed.any():
            return self._plain(now, context, denoiser, energy)
        parts = []
        if not weighed.all():
            plain = ~weighed
            parts.append((plain, self._plain(now.at(plain), context[plain], denoiser, energy)))
            context = context[weighed]
        rows = (now.at(weighed), context, denoiser, energy)
        if self.candidates == EXACT:
            parts.append((weighed, (yield from self._exact(*rows))))
        else:
            parts.append((weighed, (yield from self._resample(*rows, tokens_at_once))))
        return join(parts)

    def reads(self, now: StepState, denoiser: AnyDenoiser, energy: AnyEnergy | None) -> Bool[Tensor, "b l"]:
        """Where `advance` looks at the context: at what it may reveal, or, for drafts, at all that is masked."""
        masked = now.xt == denoiser.mask
        shown = self.revealing.open(now.revealed, masked)
        if energy is None or not energy.whole_sequence:
            return shown
        return shown | (self.weighs(now.t, energy)[:, None] & masked)

    def weighs(self, t: Float[Tensor, " b"], energy: AnyEnergy | None) -> Bool[Tensor, " b"]:
        """Whether a step from t may ask the energy."""
        if energy is None or self.candidates == 1:
            return torch.zeros_like(t, dtype=torch.bool)
        return self.in_window(t)

    def chooses(self, revealed: Bool[Tensor, "b l"], energy: AnyEnergy | None) -> Bool[Tensor, " b"]:
        """Whether there is anything to ask it for: one token needs no joint, and is drawn from p_theta.

        What is drawn from a law of the energy's own, exactly or to be weighed, is so however many tokens there are.
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
    ) -> Bites[StepResult]:
        if not isinstance(energy, NormalisedEnergy):
            raise ValueError(
                f"candidates=0 samples exactly, and {type(energy).__name__} is not normalised; give k >= 1"
            )
        u = now.uniforms(Purpose.CANDIDATE)
        filled = equations.up_to_last(now.xt == denoiser.mask, now.revealed) if energy.whole_sequence else now.revealed
        if not self.speculative:
            x, log_p = yield from energy.drawing(now.xt, filled, context, u)
            return now.advanced(x, energy, energy_calls=1, broken=_nan(context) | _nan(log_p))
        if not isinstance(energy, Verifiable):
            raise ValueError(f"speculative sampling verifies a draft, and {type(energy).__name__} cannot")
        draft, log_p = propose(denoiser, context, now.xt, filled, u[:, None])
        found = yield from verifying(
            draft[:, 0], log_p[:, 0], now.xt, filled, context, denoiser, energy, now.uniforms(Purpose.KEEP),
            now.uniforms(Purpose.AGAIN),
        )  # fmt: skip
        result = now.advanced(found.x, energy, broken=_nan(log_p) | found.broken)
        return replace(result, energy_calls=found.passes, accepted=found.accepted)

    def _resample(
        self,
        now: StepState,
        context: Tensor,
        denoiser: AnyDenoiser,
        energy: AnyEnergy | None,
        tokens_at_once: int | None,
    ) -> Bites[StepResult]:
        assert energy is not None
        length, block = now.xt.shape[1], energy.block
        filled = now.xt == denoiser.mask if energy.whole_sequence else now.revealed
        u = uniforms(now.seeds, now.index, 0, Purpose.CANDIDATE, (self.candidates, length))
        x, log_p = draw_candidates(denoiser, energy, context, now.xt, filled, u)
        # One token needs no joint: resampling it would only sharpen its marginal (docs/mathematics.md 4, finite k).
        joint = equations.sum_by_group(now.revealed.long(), block) > 1
        # Groups are independent given x_t, so those that are not resampled stay masked to an energy that sees no draft.
        asked = x if energy.whole_sequence else torch.where(_everywhere(joint, length, block), x, now.xt[:, None])
        energies, distinct = yield from weighing(energy, asked, now.xt, now.t, log_p, context, tokens_at_once)
        # E = inf is what cannot be; E = -inf would be an infinite weight, which no energy can mean.
        broken = _nan(log_p) | _nan(energies) | (energies == -torch.inf).flatten(1).any(dim=1)
        energies = torch.where(broken[:, None, None], 0.0, energies)
        log_v = equations.log_weight(energies.double(), self.energy_temperature)  # E / tau may be beyond float32
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
    """As `Sampler.sample`, where each step, from t = 1 on, has a sampler and an energy of its own on the same grid."""
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
