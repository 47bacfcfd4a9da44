"""Exact worlds: sources small enough to be listed whole, and the denoiser and the energies that know them.

Everything is a float64 lookup: a probability is a sum over all texts, never an estimate.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edlm.cooperative_work import Cooperative

Source = Literal["agree", "markov", "dense", "hidden-markov"]


@dataclass(frozen=True)
class World:
    """A distribution over all texts of `length` tokens; the mask is the id `vocabulary`."""

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
        powers = (self.vocabulary + 1) ** torch.arange(self.length)
        return self._by_partial[(x * powers).sum(dim=-1)]

    @property
    def _by_partial(self) -> Tensor:
        if "table" not in self.__dict__:
            partial = cartesian(self.vocabulary + 1, self.length).flip(-1)
            agrees = ((partial[:, None] == self.texts) | (partial[:, None] == self.mask)).all(dim=-1)
            self.__dict__["table"] = agrees.double() @ self.p
        return self.__dict__["table"]

    def log_conditional(self, x: Tensor, xt: Tensor) -> Tensor:
        """log q(the tokens of x | x_t) where x holds the tokens of x_t; uniform where x_t itself is impossible."""
        new = ((x != self.mask) & (xt == self.mask)).sum(dim=-1).double()
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
    """A distribution by its name.

    `agree`: all tokens are equal; `markov`: a random first-order chain; `hidden-markov`: tokens that three states of a
    random chain emit; `dense`: any distribution.
    """
    rng = np.random.default_rng(seed)
    texts = cartesian(vocabulary, length)
    if source == "agree":
        p = (texts == texts[:, :1]).all(dim=1).double() / vocabulary
    elif source == "markov":
        first, move = rng.dirichlet(np.ones(vocabulary)), rng.dirichlet(np.full(vocabulary, 0.4), size=vocabulary)
        moves = torch.from_numpy(move)[texts[:, :-1], texts[:, 1:]]
        p = torch.from_numpy(first)[texts[:, 0]] * moves.prod(dim=1)
    elif source == "hidden-markov":
        states = 3
        first, move = rng.dirichlet(np.ones(states)), rng.dirichlet(np.full(states, 0.4), size=states)
        emission = rng.dirichlet(np.full(vocabulary, 0.4), size=states)
        return hidden(*(torch.from_numpy(part) for part in (first, move, emission)), length)
    else:
        p = torch.from_numpy(rng.dirichlet(np.full(len(texts), 0.5)))
    return World(texts, p, vocabulary)


def hidden(first: Tensor, moves: Tensor, emissions: Tensor, length: int) -> World:
    """The distribution of a hidden chain, as a sum over every path of its states."""
    texts, paths = cartesian(emissions.shape[1], length), cartesian(len(first), length)
    weight = first[paths[:, 0]] * moves[paths[:, :-1], paths[:, 1:]].prod(dim=1)
    emitted = emissions[paths[:, None], texts].prod(dim=-1)  # [path text]
    return World(texts, weight @ emitted, emissions.shape[1])


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
    """The exact energy log p_theta - log q: of whole sequences, or of a step's tokens in blocks."""

    def __init__(self, world: World, whole_sequence: bool, block: int | None = None) -> None:
        self.world, self.whole_sequence, self.block = world, whole_sequence, block

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
        super().__init__(world, whole_sequence=False)

    def log_p(self, x: Tensor, xt: Tensor, context: Tensor) -> Tensor:
        return self.world.log_conditional(x, xt[:, None])

    def read(self, x: Tensor, xt: Tensor, context: Tensor, new: Tensor | None = None) -> Tensor:
        """log q of every token at every position, given x_t and the new tokens before the place: [b, l, v]."""
        positions = torch.arange(self.world.length)
        by_position = [self.world.next_token(torch.where(positions < at, x, xt), at) for at in positions.tolist()]
        return torch.stack(by_position, dim=1)

    def log_p_of(self, features: Tensor, where: Tensor, x: Tensor) -> Tensor:
        return selected_log_p(features, where, x)

    def distribution(self, features: Tensor, where: Tensor) -> Tensor:
        return features[where]

    def draw(self, xt: Tensor, where: Tensor, context: Tensor, u: Tensor) -> Cooperative[tuple[Tensor, Tensor]]:
        x, log_p = xt.clone(), torch.zeros_like(u)
        for at in range(self.world.length):
            distribution = self.world.next_token(x, at)
            cdf = distribution.exp().cumsum(dim=-1)
            tokens = (u[:, at, None] >= cdf).sum(dim=-1).clamp(max=self.world.vocabulary - 1)
            x[:, at] = torch.where(where[:, at], tokens, x[:, at])
            log_p[:, at] = torch.where(where[:, at], distribution.gather(1, tokens[:, None])[:, 0], 0.0)
            yield
        return x, log_p


class OnProposal:
    """The exact energy log p_c - log q of a step's tokens, with candidates from another world's p_c."""

    whole_sequence, block = False, None

    def __init__(self, world: World, other: World) -> None:
        self.world, self.proposal = world, Conditional(other)

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor:
        log_q = self.world.log_conditional(x, xt[:, None])
        return (self.proposal.log_p(x, xt, context) - log_q)[..., None]


class Constant:
    """An energy that says nothing."""

    def __init__(self, value: float, whole_sequence: bool = True, block: int | None = None) -> None:
        self.value, self.whole_sequence, self.block = value, whole_sequence, block

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor:
        return torch.full_like(log_p, self.value)


class EnumeratedAutoregressive(torch.nn.Module):
    """The world's distribution as an autoregressive model: log p(x^l | x^<l), from the first token on."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def log_p(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        masked = torch.full_like(x, self.world.mask)
        prefixes = [torch.cat([x[:, :at], masked[:, at:]], dim=1) for at in range(self.world.length + 1)]
        pairs = itertools.pairwise(prefixes)
        log_p = torch.stack([self.world.log_conditional(longer, shorter) for shorter, longer in pairs], dim=1)
        return log_p if where is None else torch.where(where, log_p, 0.0)

    def read(self, x: Tensor) -> Tensor:
        """log p of every token at every position, given what stands left of it: [b, l, v]."""
        positions, mask = torch.arange(self.world.length), self.world.mask
        distributions = [self.world.next_token(torch.where(positions < at, x, mask), at) for at in positions.tolist()]
        return torch.stack(distributions, dim=1)

    def log_p_of(self, features: Tensor, where: Tensor, x: Tensor) -> Tensor:
        return selected_log_p(features, where, x)

    def distribution(self, features: Tensor, where: Tensor) -> Tensor:
        return features[where]

    def fill(self, x: Tensor, where: Tensor, u: Tensor) -> Cooperative[tuple[Tensor, Tensor]]:
        x, log_p = x.clone(), torch.zeros_like(u)
        for at in range(self.world.length):
            # A network would take a mask for a token, and not sum over it as this table could.
            assert bool((x[where[:, at], :at] != self.world.mask).all())
            distribution = self.world.next_token(
                torch.where(torch.arange(self.world.length) < at, x, self.world.mask), at
            )
            tokens = (
                (u[:, at, None] >= distribution.exp().cumsum(dim=-1)).sum(dim=-1).clamp(max=self.world.vocabulary - 1)
            )
            x[:, at] = torch.where(where[:, at], tokens, x[:, at])
            log_p[:, at] = torch.where(where[:, at], distribution.gather(1, tokens[:, None])[:, 0], 0.0)
            yield
        return x, log_p


def selected_log_p(features: Tensor, where: Tensor, x: Tensor) -> Tensor:
    """log p of the tokens of x at the selected positions, 0 elsewhere, from a table of all tokens [b, l, v]."""
    tokens = x.clamp(max=features.shape[-1] - 1)[..., None]
    return torch.where(where, features.gather(-1, tokens)[..., 0], 0.0)
