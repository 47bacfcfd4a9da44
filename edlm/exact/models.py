"""Exact models of a known distribution: the ideal denoiser, energies and autoregressive model.

They have the interfaces of the trained ones, so that the sampler, the bounds and the judge accept them at any length.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.cooperative_work import Cooperative
from edlm.exact.hidden_markov import HiddenMarkovModel


class ExactDenoiser:
    """p_theta(x_0 | x_t): the distribution's marginals given x_t, with a share `mix` replaced by uniform noise.

    With mix 0 it is the optimal denoiser. Time is not read: it carries no information beyond x_t.
    """

    def __init__(self, distribution: HiddenMarkovModel, mix: float = 0.0) -> None:
        if not 0 <= mix <= 1:
            raise ValueError(f"mix is a share, between 0 and 1; got {mix}")
        self.distribution, self.mix = distribution, mix
        self.vocabulary = self.mask = distribution.vocabulary

    def read(self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"]) -> Float64[Tensor, "b l v"]:
        """Return log p_theta of every token at every position."""
        return ((1 - self.mix) * self.distribution.posteriors(xt) + self.mix / self.vocabulary).log()

    def log_p(self, context: Float64[Tensor, "b l v"], where: Bool[Tensor, "b l"]) -> Float64[Tensor, "n v"]:
        """Return log p_theta(x_0 | x_t) at the selected masked positions, in (b, l) order."""
        return context[where]


class ExactEnergy:
    """E = log p_theta - log q(x_U | x_t) for any denoiser's `log_p`: a whole-sequence or a step energy.

    In blocks, each block sees its own new tokens and x_t, so that its E is that of q(x_{U_g} | x_t). Impossible tokens
    have E = infinity; where x_t itself is impossible, q is taken to be uniform.
    """

    def __init__(self, distribution: HiddenMarkovModel, whole_sequence: bool, block: int | None = None) -> None:
        if whole_sequence and block is not None:
            raise ValueError(
                f"a whole-sequence energy has no blocks; leave block out (got {block}), or set whole_sequence=False"
            )
        self.distribution, self.whole_sequence, self.block = distribution, whole_sequence, block

    def __call__(
        self,
        x: Int[Tensor, "b k l"],
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        log_p: Float[Tensor, "b k g"],
        context: Tensor,
    ) -> Float64[Tensor, "b k g"]:
        length = x.shape[-1]
        groups = torch.arange(equations.group_count(length, self.block), device=x.device)
        in_group = equations.spread_groups(groups, length, self.block) == groups[:, None]
        xt = xt[:, None, None]
        log_q = self.distribution.log_joint(torch.where(in_group, x[:, :, None], xt), xt)
        return torch.where(log_q == -math.inf, math.inf, log_p.double() - log_q)


class ExactConditional:
    """Exact step energy in normalised form: Z = 1, and `draw` samples q(x_U | x_t) itself in reading order."""

    whole_sequence = False
    normalised = True

    def __init__(self, distribution: HiddenMarkovModel) -> None:
        self.distribution = distribution
        self.block: int | None = None
        self._energy = ExactEnergy(distribution, whole_sequence=False)

    def __call__(self, x, xt, t, log_p, context) -> Float64[Tensor, "b k g"]:
        return self._energy(x, xt, t, log_p, context)

    def log_p(self, x: Int[Tensor, "b k l"], xt: Int[Tensor, "b l"], context: Tensor) -> Float64[Tensor, "b k"]:
        """Return log q(x_U | x_t) of each candidate; U is where x_t is masked and x is not."""
        return self.distribution.log_joint(x, xt[:, None])

    def draw(
        self, xt: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], context: Tensor, u: Float64[Tensor, "b l"]
    ) -> Cooperative[tuple[Int[Tensor, "b l"], Float64[Tensor, "b l"]]]:
        """Draw x_U ~ q(. | x_t) at the selected positions and return it with log q per token; x_t and 0 elsewhere."""
        yield from ()  # no pause: one call does all the work
        return self.distribution.fill(xt, where, u)


class ExactAutoregressive:
    """log q(x^l | x^<l) from the first token on: for the energies `ar` and `coar`, as a baseline and as a judge.

    The judge is `Judge("exact", ExactAutoregressive(source), tokenizer, source.length + 1, start=source.vocabulary)`,
    where `source` is the distribution.
    """

    def __init__(self, distribution: HiddenMarkovModel) -> None:
        self.distribution, self.vocabulary = distribution, distribution.vocabulary

    def log_p(self, x: Int[Tensor, "b l"], where: Bool[Tensor, "b l"] | None = None) -> Float64[Tensor, "b l"]:
        """Return log q at the selected positions (all by default), 0 elsewhere; uniform after an impossible token."""
        log_p = self.distribution.increments(x)
        return log_p if where is None else torch.where(where, log_p, 0.0)

    def __call__(self, tokens: Int[Tensor, "b w"]) -> tuple[Float64[Tensor, "b w-1"], Float64[Tensor, "b w s"]]:
        """Return log q of every token after the start token and the beliefs about the next state, as a judge does."""
        text = F.pad(tokens[:, 1:], (0, 1), value=self.vocabulary)
        return self.distribution.increments(text)[:, :-1], self.distribution.beliefs(text)
