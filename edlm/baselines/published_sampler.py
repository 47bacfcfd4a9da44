"""Published EDLM generator, reproduced for comparison: used on explicit request only.

Its results depend on these differences from `edlm.sampling.sampler.Sampler`:
  every token is drawn by a Gumbel race in float32, which truncates the tail (`race`);
  a plain step is ONE race over the vocabulary and the mask, so that more steps truncate more (`reverse`);
  the k candidates of a scored step are drawn by races without the mask, and a single new token is resampled too;
  time ends at 1e-5, and positions still masked then become the likeliest token.
Its errors are not reproduced: the weight here is exp(-E), where the released code has exp(+E); candidates compete with
those of their own sequence, where it mixes the batch; energies get t and log-probabilities, where it passes t for sigma
and probabilities. Sources: Xu et al. 2024 (arXiv 2410.21357) and its released code; Zheng et al. 2024 (arXiv
2409.02908) for the effect of the race; docs/mathematics.md 4.1.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.config import ConfigurationError, Fraction, config
from edlm.interfaces import AnyDenoiser, AnyEnergy, Model
from edlm.models.readout import chunks
from edlm.rng import Purpose, uniforms
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.state import NonFiniteRows, StepResult, StepState, join
from edlm.sampling.unmasking import AtRandom
from edlm.schedule import AbstractSchedule

Precision = Literal["bfloat16", "float32", "float64"]
EXACT_LABEL = "exact"

_TINY = 1e-10  # added inside and outside the logarithm in the published race
_NOISE = 8  # chunks are this much smaller: a race holds 64-bit noise per entry besides the probabilities


def race(p: Float[Tensor, "*n v"], u: Float64[Tensor, "*n v"], dtype: torch.dtype) -> Int[Tensor, "*n"]:
    """Return the winner of argmax_v p_v / e_v, e_v = -log u_v, computed in `dtype`; p need not be normalised.

    With exact noise v wins with probability p_v. But 1 - u_v, and so e_v, is never below the resolution h of the
    uniforms (2^-24 in float32, 2^-8 in bfloat16), so against any others of total weight 1 - p_v a rare token v wins
    only with probability
        h / (exp(h / p_v) - 1)  =  p_v - h / 2 + ...
    which is 0.58 of its share at p_v = h = 6e-8 and almost nothing below. The likely tokens gain what it loses.
    """
    return (p.to(dtype) / (_TINY - (grained(u, dtype) + _TINY).log())).argmax(dim=-1)


def grained(u: Float64[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n"]:
    """Round uniforms to the values of `torch.rand`: multiples of 2^-24 in float32, including 0 and excluding 1.

    In bfloat16 these are rounded, and values that become 1 are set to 0.
    """
    grid = 2 / torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    rounded = ((u * grid).floor() / grid).to(dtype)
    return torch.where(rounded == 1, 0, rounded)


def reverse(
    log_p: Float[Tensor, "n v"], share: Float[Tensor, " n"], u: Float64[Tensor, "n v+1"], dtype: torch.dtype
) -> Int[Tensor, " n"]:
    """Draw x_s of masked positions by one race over q = (r p_theta, 1 - r), in which the mask, whose id is v, competes.

    `share` is r = (alpha_s - alpha_t) / (1 - alpha_t), about 1 / i at the i-th step before the end. A token enters the
    race with p_v / i, so that the resolution h truncates tokens rarer than i h. With T steps a token is unmasked at any
    i from 1 to T with equal probability, so more steps lose more of the tail and lower the entropy.
    """
    q = torch.cat([log_p.exp() * share[:, None], 1 - share[:, None]], dim=-1)
    return race(q, u, dtype)


@config
class PublishedSampler:
    """Published generator in place of `sampler`, for whole-sequence energies only."""

    sampler: Sampler
    """Steps, candidates (k >= 1), window and temperature."""
    precision: Precision = "float32"
    """Precision of the races: float32 is the published one, float64 the same procedure without its artifact."""
    end: Fraction = 1e-5
    """Last time of the grid from t = 1; positions still masked there become the likeliest token."""

    def __post_init__(self) -> None:
        if self.sampler.candidates == EXACT:
            raise ConfigurationError("sampler.candidates is 0 (exact); the published generator has k >= 1 candidates")
        if self.sampler.grid is not None:
            raise ConfigurationError("sampler.grid is set; the published generator's steps are of equal length")
        if self.sampler.unmasking != AtRandom():
            raise ConfigurationError(
                f"sampler.unmasking is {self.sampler.unmasking.kind}; the published generator unmasks at_random"
            )

    @property
    def label(self) -> str:
        """Label of every result of this sampler."""
        return f"published sampler, {self.precision} race"

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

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
        """Sample as `Sampler.sample`; `on_step` gets one more result, that of the likeliest tokens at the end.

        Raise ValueError for a step energy, whose candidates are not whole sequences.
        """
        if energy is not None and not energy.whole_sequence:
            raise ValueError(
                f"{type(energy).__name__} scores the tokens of a step, and the published generator whole sequences "
                "alone; use Sampler"
            )
        model = Model(denoiser, energy, schedule)
        steps, broken = self.sampler.steps, torch.zeros(len(xt), dtype=torch.bool, device=xt.device)
        for i in range(steps, -1, -1):
            index = torch.full_like(seeds, i)
            t, s = (self.end + (1 - self.end) * j.double() / steps for j in (index, index - 1))
            if i == 0:
                state = StepState(xt, t, torch.zeros_like(t), index, seeds, xt == denoiser.mask, xt)
                result = _likeliest_step(state, model)
            else:
                result = self.step(xt, t, s, index, seeds, model)
            xt, broken = result.xs, broken | result.broken
            if on_step is not None:
                on_step(result)
        if broken.any():
            raise NonFiniteRows(torch.nonzero(broken)[:, 0].tolist(), xt)
        return xt

    @torch.no_grad()
    def step(
        self,
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        index: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        model: Model,
    ) -> StepResult:
        """Step as `Sampler.step`, except that races select the positions."""
        masked, share = xt == model.denoiser.mask, model.schedule.unmask_probability(t, s)
        scored = self.sampler.may_score(t, model.energy)
        parts = []
        for rows, method in ((~scored, self._plain_step), (scored, self._resample_step)):
            if rows.any():
                state = StepState(xt[rows], t[rows], s[rows], index[rows], seeds[rows], masked[rows], xt[rows])
                parts.append((rows, method(state, share[rows], model)))
        return join(parts)

    def _plain_step(self, state: StepState, share: Float[Tensor, " b"], model: Model) -> StepResult:
        context, x, broken = model.denoiser.read(state.xt, state.t), state.xt.clone(), _none(state)
        for chunk, rows, at in _chunks(state.unmasked, model.denoiser.vocabulary):
            u = uniforms(state.seeds[rows], state.index[rows], at, Purpose.UNMASK, (model.denoiser.vocabulary + 1,))
            log_p = model.denoiser.log_p(context, chunk)
            broken[rows[_nan(log_p)]] = True
            x[rows, at] = reverse(log_p, share[rows], u, self.dtype)
        return replace(state, unmasked=x != state.xt).advanced(x, model.block, broken=broken)

    def _resample_step(self, state: StepState, share: Float[Tensor, " b"], model: Model) -> StepResult:
        energy, k = model.energy, self.sampler.candidates
        assert energy is not None
        context = model.denoiser.read(state.xt, state.t)
        x, log_p, broken = self._candidates(state, context, model.denoiser)
        energies = energy(x, state.xt, state.t, equations.sum_by_group(log_p, energy.block), context)
        broken = broken | _nan(energies.flatten(1)) | (energies == -torch.inf).flatten(1).any(dim=1)
        energies = torch.where(broken[:, None, None], 0.0, energies)
        log_v = equations.log_weight(energies, self.sampler.energy_temperature)
        picked = equations.pick(log_v, state.uniforms(Purpose.PICK, log_v.shape[2]))
        chosen = x.gather(1, equations.spread_groups(picked, state.length, energy.block)[:, None])[:, 0]
        # Reverse step of a denoiser that is certain of the chosen candidate: its token competes with the mask alone.
        q = torch.stack([share, 1 - share], dim=-1)[:, None].expand(*chosen.shape, 2)
        kept = race(q, state.uniforms(Purpose.UNMASK, state.length, 2), self.dtype) == 0
        unmasked = state.unmasked & kept
        return replace(
            replace(state, unmasked=unmasked).advanced(chosen, energy.block, energy_calls=k, broken=broken),
            energies=energies,
            picked=picked,
            ess=equations.effective_sample_size(log_v).mean(dim=1),
            distinct=torch.tensor([row.unique(dim=0).shape[0] for row in x], device=x.device),
        )

    def _candidates(
        self, state: StepState, context: Tensor, denoiser: AnyDenoiser
    ) -> tuple[Int[Tensor, "b k l"], Float[Tensor, "b k l"], Bool[Tensor, " b"]]:
        """Draw k candidates, each by a race over the vocabulary at every masked position.

        Return them, their log-probabilities, and which rows have NaN log-probabilities.
        """
        k = self.sampler.candidates
        x = state.xt[:, None].repeat(1, k, 1)
        by_position, broken = torch.zeros(x.shape, dtype=torch.float64, device=x.device), _none(state)
        for chunk, rows, at in _chunks(state.unmasked, k * denoiser.vocabulary):
            log_p = denoiser.log_p(context, chunk)
            broken[rows[_nan(log_p)]] = True
            u = uniforms(state.seeds[rows], state.index[rows], at, Purpose.CANDIDATE, (k, denoiser.vocabulary))
            tokens = race(log_p.exp()[:, None].expand_as(u), u, self.dtype)
            x[rows, :, at] = tokens
            by_position[rows, :, at] = log_p.gather(-1, tokens).double()
        return x, by_position, broken


def _chunks(where: Tensor, entries: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the selected positions in chunks, with their rows and columns, for `entries` of noise per position."""
    for chunk in chunks(where, _NOISE * entries):
        rows, at = torch.nonzero(chunk, as_tuple=True)
        yield chunk, rows, at


def _none(state: StepState) -> Bool[Tensor, " b"]:
    return torch.zeros(len(state.xt), dtype=torch.bool, device=state.xt.device)


def _nan(values: Float[Tensor, "n v"]) -> Bool[Tensor, " n"]:
    """Return which rows contain NaN, which a race or an argmax would take for the winner."""
    return values.isnan().any(dim=1)


def _likeliest_step(state: StepState, model: Model) -> StepResult:
    """Replace each masked position by its likeliest token, independently: biased, as published."""
    context, x, broken = model.denoiser.read(state.xt, state.t), state.xt.clone(), _none(state)
    for chunk in chunks(state.unmasked, model.denoiser.vocabulary):
        log_p = model.denoiser.log_p(context, chunk)
        broken[torch.nonzero(chunk)[_nan(log_p), 0]] = True
        x[chunk] = log_p.argmax(dim=-1)
    return state.advanced(x, model.block, broken=broken)
