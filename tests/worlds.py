"""Exact worlds: sources small enough to be listed whole, the denoiser and the energies that know them, and p_k.

Everything is a float64 lookup: a probability is a sum over all texts, never an estimate.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edlm.sampler import EXACT, AnyDenoiser, AnyEnergy, Sampler
from edlm.schedule import AbstractSchedule

Source = Literal["agree", "markov", "dense"]


@dataclass(frozen=True)
class World:
    """A law over all texts of `length` tokens; the mask is the id `vocabulary`."""

    texts: Tensor  # Int64[n l]
    p: Tensor  # Float64[n]
    vocabulary: int

    @property
    def length(self) -> int:
        return self.texts.shape[1]

    @property
    def mask(self) -> int:
        return self.vocabulary

    @property
    def entropy(self) -> float:
        return -torch.xlogy(self.p, self.p).sum().item()

    def canvas(self, b: int) -> Tensor:
        return torch.full((b, self.length), self.mask)

    def probability(self, x: Tensor) -> Tensor:
        """P(the tokens of x; whatever is masked is summed over), of x [..., l]."""
        places = (self.vocabulary + 1) ** torch.arange(self.length)
        return self._by_partial[(x * places).sum(dim=-1)]

    @property
    def _by_partial(self) -> Tensor:
        if "table" not in self.__dict__:
            partial = cartesian(self.vocabulary + 1, self.length).flip(-1)
            agrees = ((partial[:, None] == self.texts) | (partial[:, None] == self.mask)).all(dim=-1)
            self.__dict__["table"] = agrees.double() @ self.p
        return self.__dict__["table"]

    def log_conditional(self, x: Tensor, xt: Tensor) -> Tensor:
        """log q(the tokens of x | x_t) where x holds the tokens of x_t; uniform where x_t itself is impossible."""
        new = ((x != self.mask) & (xt == self.mask)).sum(dim=-1)
        given = self.probability(xt)
        return torch.where(given > 0, (self.probability(x) / given).log(), -new * math.log(self.vocabulary))

    def next_token(self, x: Tensor, at: int) -> Tensor:
        """log q(token at `at` | x) for every token: [..., v]."""
        every = x[..., None, :].repeat_interleave(self.vocabulary, dim=-2)
        every[..., at] = torch.arange(self.vocabulary)
        return self.log_conditional(every, x[..., None, :])


def cartesian(size: int, count: int) -> Tensor:
    """All tuples of `count` numbers below `size`, the last changing fastest: [size ** count, count]."""
    return torch.tensor(list(itertools.product(range(size), repeat=count)), dtype=torch.long).view(size**count, count)


def world(source: Source, vocabulary: int = 3, length: int = 3, seed: int = 0) -> World:
    """`agree`: all tokens are equal; `markov`: a random first-order chain; `dense`: any law."""
    rng = np.random.default_rng(seed)
    texts = cartesian(vocabulary, length)
    if source == "agree":
        p = (texts == texts[:, :1]).all(dim=1).double() / vocabulary
    elif source == "markov":
        first, move = rng.dirichlet(np.ones(vocabulary)), rng.dirichlet(np.full(vocabulary, 0.4), size=vocabulary)
        moves = torch.from_numpy(move)[texts[:, :-1], texts[:, 1:]]
        p = torch.from_numpy(first)[texts[:, 0]] * moves.prod(dim=1)
    else:
        p = torch.from_numpy(rng.dirichlet(np.full(len(texts), 0.5)))
    return World(texts, p, vocabulary)


class Marginals:
    """A denoiser: the world's marginals given x_t, of which a share `mix` + `drift` t is replaced by uniform noise."""

    def __init__(self, world: World, mix: float = 0.0, drift: float = 0.0) -> None:
        self.world, self.mix, self.drift = world, mix, drift
        self.mask, self.vocabulary = world.mask, world.vocabulary

    def read(self, xt: Tensor, t: Tensor) -> Tensor:
        """log p_theta of every token at every position: [b, l, v]."""
        exact = torch.stack([self.world.next_token(xt, at) for at in range(self.world.length)], dim=1).exp()
        noise = (self.mix + self.drift * t)[:, None, None]
        return ((1 - noise) * exact + noise / self.vocabulary).log()

    def log_p(self, context: Tensor, where: Tensor) -> Tensor:
        return context[where]


class Residual:
    """The exact energy log p_theta - log q: of whole drafts, or of a step's tokens in blocks."""

    def __init__(self, world: World, drafts: bool, block: int | None = None) -> None:
        self.world, self.drafts, self.block = world, drafts, block

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor:
        length, mask = self.world.length, self.world.mask
        size = length if self.block is None else self.block
        # From the table and not from `log_p`, so that a wrong `log_p` shows.
        by_position = context[:, None].expand(-1, x.shape[1], -1, -1).gather(-1, x.clamp(max=mask - 1)[..., None])
        energies = []
        for start in range(0, length, size):
            new = (xt == mask)[:, None] & (x != mask)
            new[..., :start], new[..., start + size :] = False, False
            log_q = self.world.log_conditional(torch.where(new, x, xt[:, None]), xt[:, None])
            log_p_theta = torch.where(new, by_position[..., 0], 0.0).sum(dim=-1)
            energies.append(torch.where(log_q == -math.inf, math.inf, log_p_theta - log_q))
        return torch.stack(energies, dim=-1)


class Conditional(Residual):
    """The exact step energy as a normalised one, which draws q(x_U | x_t) itself in reading order."""

    normalised = True

    def __init__(self, world: World) -> None:
        super().__init__(world, drafts=False)

    def draw(self, xt: Tensor, where: Tensor, context: Tensor, u: Tensor) -> Tensor:
        x = xt.clone()
        for at in range(self.world.length):
            cdf = self.world.next_token(x, at).exp().cumsum(dim=-1)
            tokens = (u[:, at, None] >= cdf).sum(dim=-1).clamp(max=self.world.vocabulary - 1)
            x[:, at] = torch.where(where[:, at], tokens, x[:, at])
        return x


class Constant:
    """An energy that says nothing."""

    def __init__(self, value: float, drafts: bool = True, block: int | None = None) -> None:
        self.value, self.drafts, self.block = value, drafts, block

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor:
        return torch.full_like(log_p, self.value)


class ExactAutoregressive(torch.nn.Module):
    """The world's law as an autoregressive model: log p(x^l | x^<l), from the first token on."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def log_p(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        masked = torch.full_like(x, self.world.mask)
        prefixes = [torch.cat([x[:, :at], masked[:, at:]], dim=1) for at in range(self.world.length + 1)]
        pairs = itertools.pairwise(prefixes)
        log_p = torch.stack([self.world.log_conditional(longer, shorter) for shorter, longer in pairs], dim=1)
        return log_p if where is None else torch.where(where, log_p, 0.0)


# ---------------------------------------------------------------- p_k, by listing every draw


@dataclass(frozen=True)
class Step:
    """What a step from x_t at time t may do, for one x_t: the reference that samples and bounds are compared with."""

    world: World
    denoiser: AnyDenoiser
    energy: AnyEnergy | None
    candidates: int
    temperature: float = 1.0

    def drafts(self, xt: Tensor, t: float, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every way x to fill `where` [n l], its log p_theta by position [n l], and its energy by group [n g]."""
        x = xt.repeat(self.world.vocabulary ** int(where.sum()), 1)
        x[:, where] = cartesian(self.world.vocabulary, int(where.sum()))
        time = torch.tensor([t], dtype=torch.float64)
        context = self.denoiser.read(xt[None], time)
        table = context[0].gather(-1, x.clamp(max=self.world.mask - 1).T).T
        log_p = torch.where(where, table, 0.0)
        if self.energy is None:
            return x, log_p, torch.zeros(len(x), 1, dtype=torch.float64)
        groups = torch.stack([log_p[:, members].sum(dim=-1) for members in self.groups()], dim=-1)
        return x, log_p, self.energy(x[None], xt[None], time, groups[None], context)[0].double()

    def groups(self) -> list[Tensor]:
        """The positions that are weighed together."""
        at = torch.arange(self.world.length)
        block = None if self.energy is None else self.energy.block
        return [at] if block is None else list(at.split(block))

    def law(self, xt: Tensor, t: float, revealed: Tensor) -> dict[tuple[int, ...], float]:
        """P(x_s | x_t, U): every x_s that can come of it, with its probability."""
        drafts = self.energy is not None and self.energy.drafts
        result = {tuple(xt.tolist()): 1.0}
        for group, members in enumerate(self.groups()):
            mine = torch.zeros_like(revealed)
            mine[members] = revealed[members]
            if mine.any():
                x, log_p, energies = self.drafts(xt, t, (xt == self.world.mask) if drafts else mine)
                alone = self.energy is None or (mine.sum() == 1 and self.candidates != EXACT)
                chosen = resampled(
                    log_p.sum(dim=1).exp(), energies[:, group] / self.temperature, 1 if alone else self.candidates
                )
                one = {}
                for tokens, probability in zip(torch.where(mine, x, xt).tolist(), chosen.tolist(), strict=True):
                    one[tuple(tokens)] = one.get(tuple(tokens), 0.0) + probability
                result = _product(result, one, self.world.mask)
        return result

    def nll(self, x0: Tensor, xt: Tensor, t: float, revealed: Tensor) -> float:
        """-log p_k(x_0 at U | x_t)."""
        probability = self.law(xt, t, revealed).get(tuple(torch.where(revealed, x0, xt).tolist()), 0.0)
        return -math.log(probability) if probability > 0 else math.inf


def resampled(p: Tensor, energy: Tensor, k: int) -> Tensor:
    """Law of the one that is kept of k draws from p [n] with weights exp(-energy); k = 0: of p exp(-energy) itself."""
    if k == EXACT:
        weight = p * (-energy).exp()
        return weight / weight.sum()
    tuples = cartesian(len(p), k)
    log_v = -torch.where(p > 0, energy, 0.0)[tuples]
    share = torch.where((log_v == -math.inf).all(dim=1, keepdim=True), 0.0, log_v).softmax(dim=1)
    share = share * p[tuples].prod(dim=1, keepdim=True)
    return torch.zeros_like(p).index_add(0, tuples.flatten(), share.flatten())


def subsets(masked: Tensor) -> list[Tensor]:
    """Every set of masked positions, the empty one too."""
    places = torch.nonzero(masked)[:, 0]
    chosen = cartesian(2, len(places)).bool()
    result = torch.zeros(len(chosen), len(masked), dtype=torch.bool)
    result[:, places] = chosen
    return list(result)


def step_law(step: Step, xt: Tensor, t: float, s: float, schedule: AbstractSchedule) -> dict[tuple[int, ...], float]:
    """P(x_s | x_t) of a step from t to s: over the positions that are revealed, and over the draws."""
    share = schedule.reveal(torch.tensor(t).double(), torch.tensor(s).double()).item()
    masked, result = xt == step.world.mask, {}
    for revealed in subsets(masked):
        count = int(revealed.sum())
        weight = share**count * (1 - share) ** (int(masked.sum()) - count)
        for xs, probability in step.law(xt, t, revealed).items() if weight > 0 else ():
            result[xs] = result.get(xs, 0.0) + weight * probability
    return result


def sampler_law(
    world: World,
    denoiser: AnyDenoiser,
    energy: AnyEnergy | None,
    sampler: Sampler,
    schedule: AbstractSchedule,
    canvas: Tensor,
) -> Tensor:
    """The law over `world.texts` of the texts that the sampler writes on a canvas."""
    weighing = Step(world, denoiser, energy, sampler.candidates, sampler.temperature)
    laws = {tuple(canvas.tolist()): 1.0}
    for i in range(sampler.steps, 0, -1):
        t, after = i / sampler.steps, {}
        inside = sampler.window[0] - 1e-9 <= t <= sampler.window[1] + 1e-9
        step = weighing if inside else replace(weighing, candidates=1)
        for xt, weight in laws.items():
            for xs, probability in step_law(step, torch.tensor(xt), t, (i - 1) / sampler.steps, schedule).items():
                after[xs] = after.get(xs, 0.0) + weight * probability
        laws = after
    return torch.tensor([laws.get(tuple(text), 0.0) for text in world.texts.tolist()], dtype=torch.float64)


def exact_bound(
    world: World, denoiser: AnyDenoiser, energy: AnyEnergy | None, steps: int, candidates: int, schedule
) -> float:
    """The mean over the world of sum_i E[-log p_k(x_0 at U_i | x_{t_i})] (docs/mathematics.md 5.1)."""
    step, total = Step(world, denoiser, energy, candidates), 0.0
    for i in range(steps, 0, -1):
        t, s = (torch.tensor(j / steps, dtype=torch.float64) for j in (i, i - 1))
        dark, share = 1 - schedule.alpha(t).item(), schedule.reveal(t, s).item()
        for masked in subsets(torch.ones(world.length, dtype=torch.bool)):
            m = int(masked.sum())
            p_masked = dark**m * (1 - dark) ** (world.length - m)
            for revealed in subsets(masked) if p_masked > 0 else ():
                u = int(revealed.sum())
                weight = p_masked * share**u * (1 - share) ** (m - u)
                if u and weight > 0:
                    total += weight * _mean_nll(step, masked, revealed, t.item())
    return total


def _mean_nll(step: Step, masked: Tensor, revealed: Tensor, t: float) -> float:
    world, total, laws = step.world, 0.0, {}
    for x0, p in zip(world.texts, world.p.tolist(), strict=True):
        if p > 0:
            xt = torch.where(masked, world.mask, x0)
            key = tuple(xt.tolist())
            if key not in laws:
                laws[key] = step.law(xt, t, revealed)
            total -= p * math.log(laws[key][tuple(torch.where(revealed, x0, xt).tolist())])
    return total


def _product(
    one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float], mask: int
) -> dict[tuple[int, ...], float]:
    """Two groups that are filled on their own, joined."""
    joined = {}
    for (x, p), (y, q) in itertools.product(one.items(), other.items()):
        both = tuple(b if a == mask else a for a, b in zip(x, y, strict=True))
        joined[both] = joined.get(both, 0.0) + p * q
    return joined


# ---------------------------------------------------------------- comparing counts with a law


def chi_square(counts: Tensor, law: Tensor) -> float:
    """How far counts are from a law, as a standard normal deviate (Wilson and Hilferty 1931).

    Cells where fewer than five are expected are taken together; a count where the law is zero is infinitely far.
    """
    if (counts[law == 0] > 0).any():
        return math.inf
    expected, counts = law * counts.sum(), counts.double()
    small = expected < 5
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    counts = torch.cat([counts[~small], counts[small].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    df = len(expected) - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
