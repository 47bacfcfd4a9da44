"""Reference distributions and bounds of the sampler in an exact world, by enumeration."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from edlm.interfaces import AnyDenoiser, AnyEnergy, Model, proposal_of
from edlm.likelihood.bounds import step_nll
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.unmasking import AbstractUnmasking, AtRandom, MostCertain, Remasking
from edlm.schedule import AbstractSchedule, LogLinear
from tests.counting import multisets
from tests.worlds import World, cartesian

Distribution = dict[tuple[int, ...], float]
"""Probabilities of texts."""


@dataclass(frozen=True, eq=False)
class Step:
    """Reference for a step from x_t at time t: its distribution and its bound, by enumeration."""

    world: World
    denoiser: AnyDenoiser
    energy: AnyEnergy | None
    candidates: int
    temperature: float = 1.0
    accepts: Callable[[Tensor], Tensor] | None = None
    """A constraint: which texts [n l] are allowed; None: all."""

    def drafts(self, xt: Tensor, t: float, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return every x that fills `where` [n l], its log p_theta by position [n l] and energy by group [n g]."""
        x = xt.repeat(self.world.vocabulary ** int(where.sum()), 1)
        x[:, where] = cartesian(self.world.vocabulary, int(where.sum()))
        time = torch.tensor([t], dtype=torch.float64)
        context = self.denoiser.read(xt[None], time)
        table = context[0].gather(-1, x.clamp(max=self.world.mask - 1).T).T
        log_p = torch.where(where, table, 0.0)
        if self.energy is None:
            return x, log_p, torch.zeros(len(x), 1, dtype=torch.float64)
        if (proposal := proposal_of(self.energy)) is not None:  # a joint distribution, stored at one position
            log_p = torch.zeros_like(log_p)
            log_p[:, 0] = proposal.log_p(x[None], xt[None], context)[0]
        groups = torch.stack([log_p[:, members].sum(dim=-1) for members in self.groups()], dim=-1)
        return x, log_p, self.energy(x[None], xt[None], time, groups[None], context)[0].double()

    def groups(self) -> list[Tensor]:
        """The positions that are scored together."""
        at = torch.arange(self.world.length)
        block = None if self.energy is None else self.energy.block
        return [at] if block is None else list(at.split(block))

    def distribution(self, xt: Tensor, t: float, unmasked: Tensor) -> Distribution:
        """P(x_s | x_t, U): every x_s that can come of it, with its probability."""
        if self.accepts is not None:
            return self._constrained(xt, t, unmasked)
        drafts = self.energy is not None and self.energy.whole_sequence
        result = {tuple(xt.tolist()): 1.0}
        for group, members in enumerate(self.groups()):
            mine = torch.zeros_like(unmasked)
            mine[members] = unmasked[members]
            if mine.any():
                x, log_p, energies = self.drafts(xt, t, (xt == self.world.mask) if drafts else mine)
                alone = self.energy is None or (mine.sum() == 1 and self.candidates != EXACT)
                chosen = resampled(
                    log_p.sum(dim=1).exp(), energies[:, group] / self.temperature, 1 if alone else self.candidates
                )
                following = {}
                for tokens, probability in zip(torch.where(mine, x, xt).tolist(), chosen.tolist(), strict=True):
                    following[tuple(tokens)] = following.get(tuple(tokens), 0.0) + probability
                result = _product(result, following, self.world.mask)
        return result

    @cache  # noqa: B019 - a step lives as long as its test
    def _completions(self, xt: tuple[int, ...], t: float) -> tuple[Tensor, Tensor]:
        """Every text that x_t may become [n l], and its p_theta given the constraint [n]."""
        canvas = torch.tensor(xt)
        x, log_p, _ = replace(self, energy=None, accepts=None).drafts(canvas, t, canvas == self.world.mask)
        assert self.accepts is not None
        p = torch.where(self.accepts(x), log_p.sum(dim=1).exp(), 0.0)
        return x[p > 0], p[p > 0] / p.sum()

    def weighed(self, xt: Tensor, t: float, unmasked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is weighed under a constraint [n l], whole or at U; its p_theta given the constraint; its energy."""
        whole, p = self._completions(tuple(xt.tolist()), t)
        seen = (xt == self.world.mask) if self.energy is not None and self.energy.whole_sequence else unmasked
        free = replace(self, accepts=None)
        x, log_q, energies = free.drafts(xt, t, seen)
        energy = energies.sum(dim=1)
        if proposal_of(self.energy) is not None:  # log_q is of the proposal: as a residual against p_theta
            energy = energy + replace(free, energy=None).drafts(xt, t, seen)[1].sum(dim=1) - log_q.sum(dim=1)
        of = (x[:, None, seen] == whole[None, :, seen]).all(dim=-1).double() @ p
        return x[of > 0], of[of > 0], energy[of > 0]

    def _constrained(self, xt: Tensor, t: float, unmasked: Tensor) -> Distribution:
        """`distribution` given a constraint: one of k whole draws, weighed, of which U is unmasked."""
        if not unmasked.any():
            return {tuple(xt.tolist()): 1.0}
        x, p, energy = self.weighed(xt, t, unmasked)
        alone = self.energy is None or unmasked.sum() == 1
        chosen = resampled(p, energy / self.temperature, 1 if alone else self.candidates)
        result = {}
        for tokens, probability in zip(torch.where(unmasked, x, xt).tolist(), chosen.tolist(), strict=True):
            result[tuple(tokens)] = result.get(tuple(tokens), 0.0) + probability
        return result

    @cache  # noqa: B019 - a step lives as long as its test
    def _distribution_of(self, xt: tuple[int, ...], t: float, unmasked: tuple[bool, ...]) -> Distribution:
        return self.distribution(torch.tensor(xt), t, torch.tensor(unmasked))

    def nll(self, x0: Tensor, xt: Tensor, t: float, unmasked: Tensor) -> float:
        """-log p_k(x_0 at U | x_t)."""
        distribution = self._distribution_of(tuple(xt.tolist()), t, tuple(unmasked.tolist()))
        probability = distribution.get(tuple(torch.where(unmasked, x0, xt).tolist()), 0.0)
        return -math.log(probability) if probability > 0 else math.inf


def resampled(p: Tensor, energy: Tensor, k: int) -> Tensor:
    """Law of the one that is kept of k draws from p [n] with weights exp(-energy); k = 0: of p exp(-energy) itself."""
    if k == EXACT:
        weight = p * (-energy).exp()
        return weight / weight.sum()
    often = multisets(len(p), k)
    ways = (math.lgamma(k + 1) - (often + 1).lgamma().sum(dim=1)).exp()
    probability = ways * (p**often).prod(dim=1)
    log_v = torch.where(often > 0, often.log() - torch.where(p > 0, energy, 0.0), -math.inf)
    impossible = (log_v == -math.inf).all(dim=1, keepdim=True)
    return probability @ torch.where(impossible, often.log(), log_v).softmax(dim=1)


def subsets(masked: Tensor) -> list[Tensor]:
    """Every set of masked positions, the empty one too."""
    positions = torch.nonzero(masked)[:, 0]
    chosen = cartesian(2, len(positions)).bool()
    result = torch.zeros(len(chosen), len(masked), dtype=torch.bool)
    result[:, positions] = chosen
    return list(result)


def step_distribution(
    step: Step,
    xt: Tensor,
    t: float,
    s: float,
    schedule: AbstractSchedule,
    unmasking: AbstractUnmasking = AtRandom(),  # noqa: B008 - it is frozen
    given: Tensor | None = None,
) -> Distribution:
    """P(x_s | x_t) of a step from t to s: over what is unmasked and what is masked again, and over the draws."""
    times = [torch.tensor([time], dtype=torch.float64) for time in (t, s)]
    share, again = (value.item() for value in unmasking.shares(*times, schedule))
    masked, result = xt == step.world.mask, {}
    free = ~masked if given is None else ~masked & ~given
    if unmasking == MostCertain(counts="fixed"):
        n = len(xt) if given is None else int((~given).sum())
        ways = [(_first(masked, int(masked.sum()) - _nearest(n, n * (1 - schedule.alpha(times[1]).item()))), 1.0)]
    else:
        ways = [(drawn, _chance(drawn, masked, share)) for drawn in subsets(masked)]
    for drawn, weight in ways:
        if weight == 0:
            continue
        distribution = step.distribution(xt, t, _settled(step, unmasking, drawn, xt, t))
        rests = subsets(free) if again else [torch.zeros_like(free)]
        for hidden, (xs, probability) in itertools.product(rests, distribution.items()):
            key = tuple(torch.where(hidden, step.world.mask, torch.tensor(xs)).tolist())
            result[key] = result.get(key, 0.0) + weight * _chance(hidden, free, again) * probability
    return result


def _chance(chosen: Tensor, of: Tensor, share: float) -> float:
    """P(these and no others), where each joins on its own."""
    count = int(chosen.sum())
    return share**count * (1 - share) ** (int(of.sum()) - count)


def _nearest(most: int, value: float) -> int:
    """The integer that is nearest to the value; of two, the smaller one."""
    return min(range(most + 1), key=lambda integer: (round(abs(integer - value), 9), integer))


def _first(masked: Tensor, count: int) -> Tensor:
    """Any `count` of the masked positions."""
    chosen = torch.zeros_like(masked)
    chosen[torch.nonzero(masked)[:count, 0]] = True
    return chosen


def _settled(step: Step, unmasking: AbstractUnmasking, drawn: Tensor, xt: Tensor, t: float) -> Tensor:
    """U: where the order is by certainty, the likeliest positions by the table, and not by the code under test."""
    if not isinstance(unmasking, MostCertain):
        return drawn
    table = step.denoiser.read(xt[None], torch.tensor([t], dtype=torch.float64))[0]
    positions = torch.nonzero(xt == step.world.mask)[:, 0].tolist()
    positions.sort(key=lambda at: (-table[at].max().item(), at))
    unmasked = torch.zeros_like(drawn)
    unmasked[positions[: int(drawn.sum())]] = True
    return unmasked


def sampler_distribution(
    world: World,
    denoiser: AnyDenoiser,
    energy: AnyEnergy | None,
    sampler: Sampler,
    schedule: AbstractSchedule,
    canvas: Tensor,
    accepts: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The distribution over `world.texts` of the texts that the sampler writes on a canvas. `accepts`: a constraint."""
    return sampler_distributions(world, denoiser, energy, sampler, schedule, [canvas], accepts)[0]


def sampler_distributions(
    world: World,
    denoiser: AnyDenoiser,
    energy: AnyEnergy | None,
    sampler: Sampler,
    schedule: AbstractSchedule,
    canvases: Iterable[Tensor],
    accepts: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """The same for several canvases, which share what they have in common."""
    reference = Step(world, denoiser, energy, sampler.candidates, sampler.energy_temperature, accepts)
    plain, times = replace(reference, candidates=1), sampler.times().tolist()

    @cache
    def after(xt: tuple[int, ...], i: int, given: tuple[bool, ...] | None) -> Distribution:
        inside = sampler.window[0] - 1e-9 <= times[i] <= sampler.window[1] + 1e-9
        step, kept = reference if inside else plain, None if given is None else torch.tensor(given)
        return step_distribution(step, torch.tensor(xt), times[i], times[i - 1], schedule, sampler.unmasking, kept)

    def distribution(canvas: Tensor) -> Tensor:
        distributions = {tuple(canvas.tolist()): 1.0}
        # Only what masks again, or counts what there was to fill, has to know what the canvas gave.
        knows = isinstance(sampler.unmasking, Remasking) or sampler.unmasking == MostCertain(counts="fixed")
        given = tuple((canvas != world.mask).tolist()) if knows else None
        for i in range(sampler.steps, 0, -1):
            reached = {}
            for xt, weight in distributions.items():
                for xs, probability in after(xt, i, given).items():
                    reached[xs] = reached.get(xs, 0.0) + weight * probability
            distributions = reached
        return torch.tensor([distributions.get(tuple(text), 0.0) for text in world.texts.tolist()], dtype=torch.float64)

    return [distribution(canvas) for canvas in canvases]


def exact_bound(step: Step, steps: int, schedule: AbstractSchedule, cost: Callable[..., float] = Step.nll) -> float:
    """The mean over the world of sum_i E[cost of step i] (docs/mathematics.md 5.1).

    The cost is -log p_k(x_0 at U_i | x_{t_i}), or `mean_step_nll`, what one repeat of the estimate gives on average. It
    does not depend on what stays masked, so that one of the texts that agree elsewhere stands for all of them.
    """
    world, total = step.world, 0.0
    texts, p = world.texts[world.p > 0], world.p[world.p > 0]

    @cache
    def told_apart(hidden: tuple[bool, ...]) -> list[tuple[Tensor, float]]:
        """A text of each group that differs only where it is hidden, and the probability of the group."""
        seen = np.where(hidden, world.mask, texts)
        _, first, group = np.unique(seen, axis=0, return_index=True, return_inverse=True)
        return list(zip(texts[first], np.bincount(group.ravel(), weights=p).tolist(), strict=True))

    for i in range(steps, 0, -1):
        t, s = (torch.tensor(j / steps, dtype=torch.float64) for j in (i, i - 1))
        dark, share = 1 - schedule.alpha(t).item(), schedule.unmask_probability(t, s).item()
        for masked in subsets(torch.ones(world.length, dtype=torch.bool)):
            m = int(masked.sum())
            p_masked = dark**m * (1 - dark) ** (world.length - m)
            for unmasked in subsets(masked)[1:] if p_masked > 0 else ():
                weight = p_masked * _chance(unmasked, masked, share)
                for x0, q in told_apart(tuple((masked & ~unmasked).tolist())) if weight > 0 else ():
                    total += weight * q * cost(step, x0, torch.where(masked, world.mask, x0), t.item(), unmasked)
    return total


def path_bound(step: Step, sampler: Sampler, schedule: AbstractSchedule, x0: Tensor) -> float:
    """The mean over the sampler's paths to x_0 of sum_i -log p_k(x_0 at U_i | x_{t_i}), nothing drawn."""
    world, total = step.world, 0.0
    positions = {tuple([True] * world.length): 1.0}  # which are masked
    for i in range(sampler.steps, 0, -1):
        t, s = sampler.times()[i].item(), sampler.times()[i - 1].item()
        times = [torch.tensor([time], dtype=torch.float64) for time in (t, s)]
        share, again = (value.item() for value in sampler.unmasking.shares(*times, schedule))
        after = {}
        for key, weight in positions.items():
            masked = torch.tensor(key)
            xt = torch.where(masked, world.mask, x0)
            for drawn, hidden in itertools.product(subsets(masked), subsets(~masked)):
                chance = weight * _chance(drawn, masked, share) * _chance(hidden, ~masked, again)
                if chance == 0:
                    continue
                unmasked = _settled(step, sampler.unmasking, drawn, xt, t)
                total += chance * step.nll(x0, xt, t, unmasked) if unmasked.any() else 0.0
                left = tuple(((masked & ~unmasked) | hidden).tolist())
                after[left] = after.get(left, 0.0) + chance
        positions = after
    return total


def _product(first: Distribution, other: Distribution, mask: int) -> Distribution:
    """Two groups that are filled on their own, joined."""
    joined = {}
    for (x, p), (y, q) in itertools.product(first.items(), other.items()):
        both = tuple(b if a == mask else a for a, b in zip(x, y, strict=True))
        joined[both] = joined.get(both, 0.0) + p * q
    return joined


# ---------------------------------------------------------------- the estimate of a step, over all its noise


def every_draw(step: Step, xt: Tensor, t: float, unmasked: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms [n k l] that make a step's estimate see every possible draw once, and each draw's probability [n].

    Candidate 1 is the truth where tokens are unmasked, so that its uniforms there decide nothing.
    """
    drafts = step.energy is not None and step.energy.whole_sequence
    drawn = (xt == step.world.mask if drafts else unmasked).repeat(step.candidates, 1)
    drawn[0] &= ~unmasked
    p = step.denoiser.read(xt[None], torch.tensor([t], dtype=torch.float64))[0].exp()
    middle = p.cumsum(dim=-1) - p / 2
    at = torch.nonzero(drawn)[:, 1]
    tokens = cartesian(step.world.vocabulary, len(at))
    u = torch.full((len(tokens), *drawn.shape), 0.5, dtype=torch.float64)
    u[:, drawn] = middle[at, tokens]
    return u, p[at, tokens].prod(dim=1)


def mean_step_nll(step: Step, x0: Tensor, xt: Tensor, t: float, unmasked: Tensor) -> float:
    """E[`likelihood.step_nll`] with one repeat, exactly."""
    u, weights = every_draw(step, xt, t, unmasked)
    rows = len(u)
    values = step_nll(
        x0.expand(rows, -1),
        xt.expand(rows, -1),
        unmasked.expand(rows, -1),
        torch.full((rows,), t, dtype=torch.float64),
        Model(step.denoiser, step.energy, LogLinear()),  # pyright: ignore[reportArgumentType]
        step.candidates,
        step.temperature,
        u[:, None],
    )
    return (weights * values)[weights > 0].sum().item()
