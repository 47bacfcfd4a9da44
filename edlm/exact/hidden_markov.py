"""Hidden Markov chain: exact probabilities of partly masked sequences by forward and backward passes.

A plain Markov chain is one whose states are its tokens; if in addition no state ever changes, all tokens agree. Masks
have the id `vocabulary`, as everywhere, and are summed over. Cost grows with length times states squared, whatever the
vocabulary. Messages are rescaled at every position, so that long sequences do not underflow.
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

ENUMERABLE = 20_000  # maximum of sequences that are enumerated to compute an entropy


@dataclass(frozen=True)
class Entropy:
    """Entropy in nats per sequence; the standard error is over drawn sequences, and 0 if none were drawn."""

    mean: float
    standard_error: float
    method: Literal["closed form", "enumerated", "estimated"]


@dataclass(frozen=True, eq=False)
class HiddenMarkovModel:
    """P(x) = sum over states of first(z_1) prod_l moves(z_l, z_l+1) emissions(z_l, x_l), over `length` tokens.

    All results are float64, on the device of the tokens passed in. Probabilities that only a factor below 1e-300 at a
    single position separates from 0 count as 0.
    """

    first: Float64[Tensor, " s"]
    moves: Float64[Tensor, "s s"]
    emissions: Float64[Tensor, "s v"]
    length: int

    @property
    def vocabulary(self) -> int:
        return self.emissions.shape[1]

    def log_p(self, x: Int[Tensor, "*b l"]) -> Float64[Tensor, "*b"]:
        """Return log P(the tokens of x); -inf where they are impossible."""
        total = torch.zeros(x.shape[:-1].numel(), dtype=torch.float64, device=x.device)
        for _, p in self._forward(x.reshape(-1, x.shape[-1])):
            total += p.log()
        return total.view(x.shape[:-1])

    def log_joint(self, x: Int[Tensor, "*b l"], xt: Int[Tensor, "*b l"]) -> Float64[Tensor, "*b"]:
        """Return log q(x_U | x_t), U where x_t is masked and x is not; uniform where x_t itself is impossible."""
        masked = xt == self.vocabulary
        new = (masked & (x != self.vocabulary)).sum(dim=-1).double()
        given = self.log_p(xt)
        joint = self.log_p(torch.where(masked, x, xt)) - given
        return torch.where(given > -math.inf, joint, -new * math.log(self.vocabulary))

    def increments(self, x: Int[Tensor, "b l"]) -> Float64[Tensor, "b l"]:
        """Return log P(x^l | the tokens of x to the left), 0 where x is masked; uniform after an impossible token.

        Their sum is log P(x): the distribution as an autoregressive model.
        """
        by_position = torch.stack([p.log() for _, p in self._forward(x)], dim=1)
        impossible = (by_position == -math.inf).cumsum(dim=1) > 1
        by_position = torch.where(impossible, -math.log(self.vocabulary), by_position)
        return torch.where(x == self.vocabulary, 0.0, by_position)

    def beliefs(self, x: Int[Tensor, "b l"]) -> Float64[Tensor, "b l s"]:
        """Return P(state at l | the tokens of x to the left) per position: all that they imply for what follows."""
        return torch.stack([state for state, _ in self._forward(x)], dim=1)

    def posteriors(self, xt: Int[Tensor, "b l"]) -> Float64[Tensor, "b l v"]:
        """Return q(x^l | x_t) of every token at every position; a known token has probability 1.

        Masked positions are uniform where x_t itself is impossible.
        """
        p = (self.beliefs(xt) * self._backward(xt)) @ self.emissions.to(xt.device)
        total = p.sum(dim=-1, keepdim=True)
        p = torch.where(total > 0, p / total, 1 / self.vocabulary)
        known = F.one_hot(xt, self.vocabulary + 1)[..., :-1].double()
        return torch.where((xt == self.vocabulary)[..., None], p, known)

    def fill(
        self, xt: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "b l"]
    ) -> tuple[Int[Tensor, "b l"], Float64[Tensor, "b l"]]:
        """Draw x_U ~ q(x_U | x_t) jointly at the selected masked positions, in reading order.

        Returns the tokens and log q of each given those before it; x_t and 0 elsewhere. Each position is drawn by
        inverse CDF from its own uniform; the draw is uniform where x_t itself is impossible.
        """
        x, right, table = xt.clone(), self._backward(xt), self._by_token(xt.device)
        impossible = (self.log_p(xt) == -math.inf)[:, None]
        state, log_q = self.first.to(xt.device).expand(len(xt), -1), torch.zeros_like(u)
        for position in range(xt.shape[1]):
            p = torch.where(impossible, 1.0, (state * right[:, position]) @ table[:-1].T)
            tokens, log_p = equations.draw(_normalised(p).log(), u[:, position, None])
            x[:, position] = torch.where(where[:, position], tokens[:, 0], x[:, position])
            log_q[:, position] = torch.where(where[:, position], log_p[:, 0], 0.0)
            state = _normalised(state * table[x[:, position]]) @ self.moves.to(xt.device)
        return x, log_q

    def draw(self, seed: int, rows: Int[Tensor, " b"]) -> Int[Tensor, "b l"]:
        """Draw independent sequences, each a function of (seed, its own row)."""
        canvas = torch.full((len(rows), self.length), self.vocabulary, device=rows.device)
        u = uniforms(seed, 0, rows, Purpose.SEQUENCE, (self.length,))
        return self.fill(canvas, torch.ones_like(canvas, dtype=torch.bool), u)[0]

    def entropy(self, seed: int = 0, sequences: int = 4096) -> Entropy:
        """Compute the entropy in nats per sequence.

        In closed form where states are tokens: H(first) + sum_l sum_z P(z_l = z) H(moves of z). A hidden chain has
        none: short sequences are enumerated, otherwise it is the mean of the exact -log P over drawn `sequences`.
        """
        if torch.equal(self.emissions, torch.eye(len(self.first), dtype=torch.float64)):
            visits = self._states()[:-1].sum(dim=0)
            return Entropy((_entropy(self.first) + visits @ _entropy(self.moves)).item(), 0.0, "closed form")
        if self.vocabulary**self.length <= ENUMERABLE:
            all_sequences = torch.cartesian_prod(*[torch.arange(self.vocabulary)] * self.length).view(-1, self.length)
            return Entropy(_entropy(self.log_p(all_sequences).exp()).item(), 0.0, "enumerated")
        nll = -self.log_p(self.draw(seed, torch.arange(sequences)))
        return Entropy(nll.mean().item(), (nll.std() / math.sqrt(sequences)).item(), "estimated")

    def pairs(self) -> Float64[Tensor, "v v"]:
        """Return P(x^l = a, x^l+1 = b), averaged over the positions l; requires a length of at least 2."""
        states = self._states()[:-1].mean(dim=0)
        return self.emissions.T @ (states[:, None] * self.moves) @ self.emissions

    def _forward(self, x: Int[Tensor, "n l"]) -> Iterator[tuple[Float64[Tensor, "n s"], Float64[Tensor, " n"]]]:
        """Yield per position P(state | tokens to the left) and P(its token | tokens to the left), 1 where masked.

        Both are 0 after an impossible token.
        """
        table, moves = self._by_token(x.device), self.moves.to(x.device)
        state = self.first.to(x.device).expand(len(x), -1)
        for tokens in x.unbind(dim=1):
            joint = state * table[tokens]
            yield state, joint.sum(dim=-1)
            state = _normalised(joint) @ moves

    def _backward(self, x: Int[Tensor, "n l"]) -> Float64[Tensor, "n l s"]:
        """Return P(tokens to the right | state), up to a factor per position; 0 where they are impossible."""
        table, moves = self._by_token(x.device), self.moves.to(x.device)
        message = torch.ones(len(x), len(self.first), dtype=torch.float64, device=x.device)
        messages = []
        for tokens in x.flip(1).unbind(dim=1):
            messages.append(message)
            message = _normalised((table[tokens] * message) @ moves.T)
        return torch.stack(messages[::-1], dim=1)

    def _by_token(self, device: torch.device) -> Float64[Tensor, "v1 s"]:
        """Return P(token | state) of every token, and 1 for the mask."""
        mask = torch.ones(1, len(self.first), dtype=torch.float64)
        return torch.cat([self.emissions.T, mask]).to(device)

    def _states(self) -> Float64[Tensor, "l s"]:
        """Return P(state) at every position."""
        states = [self.first]
        for _ in range(self.length - 1):
            states.append(states[-1] @ self.moves)
        return torch.stack(states)


def _normalised(p: Float64[Tensor, "n s"]) -> Float64[Tensor, "n s"]:
    """Divide p by its sum; 0 stays 0."""
    total = p.sum(dim=-1, keepdim=True)
    return p / torch.where(total > 0, total, 1.0)


def _entropy(p: Float64[Tensor, "*b v"]) -> Float64[Tensor, "*b"]:
    return -torch.xlogy(p, p).sum(dim=-1)
