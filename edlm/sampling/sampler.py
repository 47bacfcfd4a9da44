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
from edlm.config import ConfigurationError, Fraction, NonNegative, Positive, config
from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.cooperative_work import Cooperative, run_to_end
from edlm.device_copies import fetched, sent
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, proposal_of, read
from edlm.rng import Purpose, uniforms
from edlm.sampling.constrained import constrained_step, has_constrained_choice, rows_at_once
from edlm.sampling.state import NonFiniteRows, StepResult, StepState, join
from edlm.sampling.step import exact_step, plain_step, resample_step, speculative_step
from edlm.sampling.unmasking import AtRandom, Remasking, UnmaskingConfig
from edlm.schedule import AbstractSchedule

LEAST_TEMPERATURE = 1e-6  # of the importance weights: below it they only tell which energy is the lowest
EXACT = 0  # as the number of candidates: k -> infinity, for energies that can be sampled exactly


@config
class Sampler:
    """k-candidate sampler from t = 1 to 0 in `steps` steps."""

    steps: Positive
    """T, the number of steps, each a pass of the denoiser; fewer passes if a step unmasks nothing."""
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
    """steps + 1 times from 0 to 1, the limits of the steps (`edlm.planning.fitted_step_times`); None: i / steps."""
    unmasking: Annotated[UnmaskingConfig, pydantic.Field(discriminator="kind")] = AtRandom()
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
        constraints: Sequence[Constraint | None] | None = None,
    ) -> Int[Tensor, "b l"]:
        """Return the canvas with every masked position filled; each row depends on its own canvas and seed only.

        `constraints`: one per row, which its text satisfies; None for a row without one. Raise ValueError if the canvas
        holds an id that is neither a token nor the mask, or if a row's constraint leaves no text; and NonFiniteRows,
        once the other rows are finished, if a row's logits or energies are not numbers.
        """
        plan = [(self, Model(denoiser, energy, schedule))] * self.steps
        return sample_by_plan(plan, xt, seeds, on_step, constraints)

    @torch.no_grad()
    def step(
        self,
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        index: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        model: Model,
        given: Bool[Tensor, "b l"] | None = None,
        constraints: RowConstraints | None = None,
    ) -> StepResult:
        """Compute x_s from x_t; rows may be at different times. `index` is the step in each row's random streams.

        `given`: positions where the canvas held text from the start; required by a sampler that remasks or has fixed
        counts.
        """
        state = replace(self.choose_positions(xt, t, s, index, seeds, model, given), constraints=constraints)
        moves = state.on_host.moves
        if not moves.any():
            return state.unchanged(model.block)
        moving = state.at(moves)
        context = read(model.denoiser, moving.xt, moving.t, self.needed(moving, model))
        result = run_to_end(self.advance(moving, context, model))
        return result if moves.all() else join([(~moves, state.at(~moves).unchanged(model.block)), (moves, result)])

    @torch.no_grad()
    def advance(
        self, state: StepState, context: Tensor, model: Model, tokens_at_once: int | None = None
    ) -> Cooperative[StepResult]:
        """Return the rows at s, each of which unmasks at least one position, given the denoiser's `read` of them.

        The context is an argument so that rows of different samplers can share one pass of the denoiser.
        `tokens_at_once` limits a call of the energy (None: `TOKENS_AT_ONCE`).
        """
        constrained = state.constrained
        if constrained.any() and not constrained.all():
            parts = []
            for rows in (~constrained, constrained):
                part = yield from self.advance(*_at(rows, state, context), model, tokens_at_once)
                parts.append((rows, part))
            return join(parts)
        state = state.with_unmasked(self.unmasking.settle(state.unmasked, state.xt, context, model.denoiser))
        if constrained.any():
            return (yield from self._constrained_step(state, context, model, tokens_at_once))
        host = state.on_host
        chooses = self.may_score(host.t, model.energy) & self.has_choice(host.unmasked, model.energy)
        if not chooses.any():
            return plain_step(state, context, model)
        if chooses.all() or self._takes_rows_without_choice(model.energy):
            return (yield from self._choosing_step(state, context, model, tokens_at_once, chooses))
        plain = plain_step(*_at(~chooses, state, context), model)
        chosen = yield from self._choosing_step(*_at(chooses, state, context), model, tokens_at_once, chooses[chooses])
        return join([(~chooses, plain), (chooses, chosen)])

    def _takes_rows_without_choice(self, energy: AnyEnergy | None) -> bool:
        """Return whether `resample_step` advances other rows as well: one batch is fewer kernels than two.

        An energy of whole sequences would read them in vain, and a proposal draws them from another distribution.
        """
        return self.candidates > 1 and energy is not None and not energy.whole_sequence and proposal_of(energy) is None

    def _choosing_step(
        self, state: StepState, context: Tensor, model: Model, tokens_at_once: int | None, chooses: Bool[Tensor, " b"]
    ) -> Cooperative[StepResult]:
        if self.speculative:
            return speculative_step(state, context, model)
        if self.candidates == EXACT:
            return exact_step(state, context, model)
        k, tau = self.candidates, self.energy_temperature
        return resample_step(state, context, model, k, tau, chooses, tokens_at_once)

    def _constrained_step(
        self, state: StepState, context: Tensor, model: Model, tokens_at_once: int | None
    ) -> Cooperative[StepResult]:
        """Return `advance` for rows that all have a constraint, in parts of `rows_at_once`."""
        self.require_candidates()
        assert state.constraints is not None
        host = state.on_host
        chooses = self.may_score(host.t, model.energy) & has_constrained_choice(host.unmasked)
        results = []
        for k, members in ((1, ~chooses), (self.candidates, chooses)):
            rows = torch.nonzero(members)[:, 0]
            for part in rows.split(rows_at_once(state.length, model.denoiser, k)) if len(rows) else ():
                arguments = *_at(part, state, context), model, k, self.energy_temperature, tokens_at_once
                result = yield from constrained_step(*arguments)
                results.append((torch.zeros_like(chooses).index_fill(0, part, True), result))
        return join(results)

    def require_candidates(self) -> None:
        """Raise ConfigurationError if this sampler draws exactly, which a constraint excludes."""
        if self.candidates == EXACT:
            raise ConfigurationError(
                "candidates is 0, exact draws token by token, which do not combine with a constraint: its candidates "
                "are drawn from p_theta(. | x_t, C), and weighed by the energy; give candidates >= 1"
            )

    def choose_positions(
        self,
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        index: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        model: Model,
        given: Bool[Tensor, "b l"] | None = None,
    ) -> StepState:
        """Select, without a network call, the positions to unmask between t and s (U) and those to mask again.

        A rule that reads the denoiser replaces U by as many other positions in `advance`. Both are computed on the
        host, which waits for what of the arguments is on a device once.
        """
        tokens, mask, shape = xt, model.denoiser.mask, (xt.shape[1],)
        xt, t, s, index, seeds = fetched([xt, t, s, index, seeds])
        masked, given = xt == mask, None if given is None else fetched([given])[0]
        u = uniforms(seeds, index, 0, Purpose.UNMASK, shape)
        unmasked = self.unmasking.draw(masked, given, t, s, model.schedule, u)
        rest = xt
        if isinstance(self.unmasking, Remasking):
            assert given is not None
            _, remasking = self.unmasking.shares(t, s, model.schedule)
            u_remask = uniforms(seeds, index, 0, Purpose.REMASK, shape)
            rest = torch.where(equations.unmask(~masked & ~given, remasking, u_remask), mask, xt)
        return StepState(xt, t, s, index, seeds, unmasked, rest).on_device(tokens.device, tokens)

    def needed(self, state: StepState, model: Model) -> Bool[Tensor, "b l"]:
        """Return where `advance` reads the context: positions it may unmask, or all masked ones for whole sequences.

        The positions are on the host.
        """
        host = state.on_host
        masked = host.xt == model.denoiser.mask
        needed = self.unmasking.open(host.unmasked, masked)
        needed = needed | (state.constrained[:, None] & masked)  # a constraint draws whole sequences
        if model.energy is None or not model.energy.whole_sequence:
            return needed
        return needed | (self.may_score(host.t, model.energy)[:, None] & masked)

    def may_score(self, t: Float[Tensor, " b"], energy: AnyEnergy | None) -> Bool[Tensor, " b"]:
        """Return whether a step from t may call the energy."""
        if energy is None or self.candidates == 1:
            return torch.zeros_like(t, dtype=torch.bool)
        return self.in_window(t)

    def has_choice(self, unmasked: Bool[Tensor, "b l"], energy: AnyEnergy | None) -> Bool[Tensor, " b"]:
        """Return whether the energy has anything to decide: a single token needs no joint and is drawn from p_theta.

        Exact draws, and candidates of a proposal, follow the energy's own distribution for any number of tokens.
        """
        if energy is None or self.candidates == EXACT or proposal_of(energy) is not None:
            return unmasked.any(dim=1)
        return (equations.sum_by_group(unmasked.long(), energy.block) > 1).any(dim=1)


Plan = Sequence[tuple[Sampler, Model]]
"""Sampler and model of every step, from t = 1 on; the samplers have one grid and one rule `unmasking`."""


def sample_by_plan(
    plan: Plan,
    xt: Int[Tensor, "b l"],
    seeds: Int[Tensor, " b"],
    on_step: Callable[[StepResult], None] | None = None,
    constraints: Sequence[Constraint | None] | None = None,
) -> Int[Tensor, "b l"]:
    """Sample as `Sampler.sample`, with the sampler and the model that the plan names for each step."""
    canvas, seeds = fetched([xt, seeds])
    _check(canvas, plan[0][1].denoiser)
    of_rows = None if constraints is None else RowConstraints(constraints)
    if of_rows is not None and of_rows.constrained.any():
        for sampler, _ in plan:
            sampler.require_candidates()
        of_rows.require_possible(canvas, plan[0][1].denoiser.mask)
    given, times = canvas != plan[0][1].denoiser.mask, plan[0][0].times()
    broken = torch.zeros(len(xt), dtype=torch.bool, device=xt.device)
    for i, (sampler, model) in zip(range(len(plan), 0, -1), plan, strict=True):
        t, s = times[i].expand(len(xt)), times[i - 1].expand(len(xt))
        result = sampler.step(xt, t, s, torch.full_like(seeds, i, dtype=torch.long), seeds, model, given, of_rows)
        xt, broken = result.xs, broken | result.broken
        if on_step is not None:
            on_step(result)
    if broken.any():
        raise NonFiniteRows(torch.nonzero(broken)[:, 0].tolist(), xt)
    return xt


def _at(rows: Bool[Tensor, " b"] | Int[Tensor, " n"], state: StepState, context: Tensor) -> tuple[StepState, Tensor]:
    """Return the state and the context at rows that are selected on the host."""
    index = torch.nonzero(rows)[:, 0] if rows.dtype == torch.bool else rows
    return state.at(index), context[sent([index], context.device)[0]]


def _check(xt: Int[Tensor, "b l"], denoiser: AnyDenoiser) -> None:
    invalid = torch.nonzero((xt < 0) | (xt > denoiser.mask))
    if len(invalid):
        row, position = invalid[0].tolist()
        raise ValueError(
            f"row {row} of the canvas holds {xt[row, position].item()} at position {position}; tokens are 0 to "
            f"{denoiser.vocabulary - 1}, and {denoiser.mask} is the mask"
        )
