"""The law of a hidden Markov chain: exact probabilities of partly masked sequences, by forward and backward passes.

A plain Markov chain is one whose states are its tokens; where besides no state ever moves, all tokens agree. Masks are
the id `vocabulary`, as everywhere, and are summed over. Cost grows with length times states squared, whatever the
vocabulary. Messages are scaled at every position: long sequences do not underflow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.rng import Purpose, uniforms

ENUMERABLE = 20_000  # sequences; up to so many are listed whole to compute an entropy


@dataclass(frozen=True)
class Entropy:
    """Nats per sequence. The standard error is over drawn sequences, and 0 where nothing was drawn."""

    mean: float
    standard_error: float
    how: Literal["closed form", "enumerated", "estimated"]


@dataclass(frozen=True, eq=False)
class Law:
    """P(x) = sum over states of first(z_1) prod_l moves(z_l, z_l+1) emissions(z_l, x_l), of `length` tokens.

    Everything is float64, on the device of the tokens that are asked about. Probabilities that only a factor below
    1e-300 at a single position separates from 0 count as 0.
    """

    first: Float64[Tensor, " s"]
    moves: Float64[Tensor, "s s"]
    emissions: Float64[Tensor, "s v"]
    length: int

    @property
    def vocabulary(self) -> int:
        return self.emissions.shape[1]

    def log_p(self, x: Int[Tensor, "*b l"]) -> Float64[Tensor, "*b"]:
        """log P(the tokens of x); -inf where they are impossible."""
        total = torch.zeros(x.shape[:-1].numel(), dtype=torch.float64, device=x.device)
        for _, p in self._forward(x.reshape(-1, x.shape[-1])):
            total += p.log()
        return total.view(x.shape[:-1])

    def log_joint(self, x: Int[Tensor, "*b l"], xt: Int[Tensor, "*b l"]) -> Float64[Tensor, "*b"]:
        """log q(x_U | x_t), U where x_t is masked and x is not; uniform where x_t itself is impossible."""
        masked = xt == self.vocabulary
        new = (masked & (x != self.vocabulary)).sum(dim=-1).double()
        given = self.log_p(xt)
        joint = self.log_p(torch.where(masked, x, xt)) - given
        return torch.where(given > -math.inf, joint, -new * math.log(self.vocabulary))

    def increments(self, x: Int[Tensor, "b l"]) -> Float64[Tensor, "b l"]:
        """log P(x^l | the tokens of x to the left), 0 where x is masked; uniform behind what is impossible.

        Their sum is log P(x): the law as an autoregressive model.
        """
        by_position = torch.stack([p.log() for _, p in self._forward(x)], dim=1)
        impossible = (by_position == -math.inf).cumsum(dim=1) > 1
        by_position = torch.where(impossible, -math.log(self.vocabulary), by_position)
        return torch.where(x == self.vocabulary, 0.0, by_position)

    def beliefs(self, x: Int[Tensor, "b l"]) -> Float64[Tensor, "b l s"]:
        """P(state at l | the tokens of x to the left) at every position: all that they say of what follows."""
        return torch.stack([state for state, _ in self._forward(x)], dim=1)

    def posteriors(self, xt: Int[Tensor, "b l"]) -> Float64[Tensor, "b l v"]:
        """q(x^l | x_t) of every token at every position; a known token has probability 1.

        At masked positions it is uniform where x_t itself is impossible.
        """
        p = (self.beliefs(xt) * self._backward(xt)) @ self.emissions.to(xt.device)
        total = p.sum(dim=-1, keepdim=True)
        p = torch.where(total > 0, p / total, 1 / self.vocabulary)
        known = F.one_hot(xt, self.vocabulary + 1)[..., :-1].double()
        return torch.where((xt == self.vocabulary)[..., None], p, known)

    def fill(
        self, xt: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "b l"]
    ) -> tuple[Int[Tensor, "b l"], Float64[Tensor, "b l"]]:
        """x_U ~ q(x_U | x_t) jointly at the selected masked positions, in reading order, and log q of each given those
        before it; x_t and 0 elsewhere.

        Each position by inverse CDF from its own uniform; uniform where x_t itself is impossible.
        """
        x, right, table = xt.clone(), self._backward(xt), self._by_token(xt.device)
        impossible = (self.log_p(xt) == -math.inf)[:, None]
        state, log_q = self.first.to(xt.device).expand(len(xt), -1), torch.zeros_like(u)
        for at in range(xt.shape[1]):
            p = torch.where(impossible, 1.0, (state * right[:, at]) @ table[:-1].T)
            tokens, log_p = equations.draw(_normalised(p).log(), u[:, at, None])
            x[:, at] = torch.where(where[:, at], tokens[:, 0], x[:, at])
            log_q[:, at] = torch.where(where[:, at], log_p[:, 0], 0.0)
            state = _normalised(state * table[x[:, at]]) @ self.moves.to(xt.device)
        return x, log_q

    def draw(self, seed: int, rows: Int[Tensor, " b"]) -> Int[Tensor, "b l"]:
        """Independent sequences: each a function of (seed, its own row)."""
        canvas = torch.full((len(rows), self.length), self.vocabulary, device=rows.device)
        u = uniforms(seed, 0, rows, Purpose.SEQUENCE, (self.length,))
        return self.fill(canvas, torch.ones_like(canvas, dtype=torch.bool), u)[0]

    def entropy(self, seed: int = 0, sequences: int = 4096) -> Entropy:
        """The entropy in nats per sequence.

        In closed form where states are tokens: H(first) + sum_l sum_z P(z_l = z) H(moves of z). A hidden chain has
        none: short ones are listed whole, and of others it is the mean of the exact -log P over drawn `sequences`.
        """
        if torch.equal(self.emissions, torch.eye(len(self.first), dtype=torch.float64)):
            before = self._states()[:-1].sum(dim=0)
            return Entropy((_entropy(self.first) + before @ _entropy(self.moves)).item(), 0.0, "closed form")
        if self.vocabulary**self.length <= ENUMERABLE:
            every = torch.cartesian_prod(*[torch.arange(self.vocabulary)] * self.length).view(-1, self.length)
            return Entropy(_entropy(self.log_p(every).exp()).item(), 0.0, "enumerated")
        nll = -self.log_p(self.draw(seed, torch.arange(sequences)))
        return Entropy(nll.mean().item(), (nll.std() / math.sqrt(sequences)).item(), "estimated")

    def pairs(self) -> Float64[Tensor, "v v"]:
        """P(x^l = a, x^l+1 = b), a mean over the positions l; needs two of them."""
        states = self._states()[:-1].mean(dim=0)
        return self.emissions.T @ (states[:, None] * self.moves) @ self.emissions

    def _forward(self, x: Int[Tensor, "n l"]) -> Iterator[tuple[Float64[Tensor, "n s"], Float64[Tensor, " n"]]]:
        """For each position P(state | tokens to the left) and P(its token | tokens to the left), 1 where it is masked.

        Both are 0 behind what is impossible.
        """
        table, moves = self._by_token(x.device), self.moves.to(x.device)
        state = self.first.to(x.device).expand(len(x), -1)
        for tokens in x.unbind(dim=1):
            seen = state * table[tokens]
            yield state, seen.sum(dim=-1)
            state = _normalised(seen) @ moves

    def _backward(self, x: Int[Tensor, "n l"]) -> Float64[Tensor, "n l s"]:
        """P(tokens to the right | state), up to a factor for each position; 0 where they are impossible."""
        table, moves = self._by_token(x.device), self.moves.to(x.device)
        message = torch.ones(len(x), len(self.first), dtype=torch.float64, device=x.device)
        messages = []
        for tokens in x.flip(1).unbind(dim=1):
            messages.append(message)
            message = _normalised((table[tokens] * message) @ moves.T)
        return torch.stack(messages[::-1], dim=1)

    def _by_token(self, device: torch.device) -> Float64[Tensor, "v1 s"]:
        """P(token | state) of every token, and 1 of the mask."""
        mask = torch.ones(1, len(self.first), dtype=torch.float64)
        return torch.cat([self.emissions.T, mask]).to(device)

    def _states(self) -> Float64[Tensor, "l s"]:
        """P(state) at every position."""
        states = [self.first]
        for _ in range(self.length - 1):
            states.append(states[-1] @ self.moves)
        return torch.stack(states)


def _normalised(p: Float64[Tensor, "n s"]) -> Float64[Tensor, "n s"]:
    """p over its sum; 0 stays 0."""
    total = p.sum(dim=-1, keepdim=True)
    return p / torch.where(total > 0, total, 1.0)


def _entropy(p: Float64[Tensor, "*b v"]) -> Float64[Tensor, "*b"]:
    return -torch.xlogy(p, p).sum(dim=-1)
