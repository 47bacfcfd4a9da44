"""Composed energies: weighted sums of energies, and a user's own function of texts as a whole-sequence energy.

A sum multiplies the factors of its terms: p(x | x_t) is proportional to p_theta(x | x_t) prod_i exp(-w_i E_i)
(docs/mathematics.md 3.6). Both are energies like any other, for `Sampler`, `sampler_bound` and the evaluation.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from edlm import equations
from edlm.config import ConfigurationError
from edlm.interfaces import AbstractEnergy, AnyEnergy, proposal_of


class WeightedSum(AbstractEnergy):
    """E = sum_i w_i E_i, of (weight, energy) pairs; terms of weight 0 are left out.

    - A sum with a whole-sequence term is a whole-sequence energy. In it a step energy scores all of a draft, as it does
      in a step to t = 0, which unmasks everything. The converse does not exist: a step lacks the tokens of later steps.
    - Blocks are joined to the smallest that whole blocks of every term fill.
    - All terms are residuals of the same distribution: of p_theta, or of one proposal.
    - Z is not 1, also where that of every term is: exact draws are for the terms alone.

    Raise ConfigurationError for terms that do not add up.
    """

    def __init__(self, terms: Sequence[tuple[float, AnyEnergy]]) -> None:
        super().__init__()
        for weight, energy in terms:
            if not math.isfinite(weight):
                raise ConfigurationError(f"the weight of {type(energy).__name__} is {weight}; give a finite number")
        self.terms = [(weight, energy) for weight, energy in terms if weight != 0]
        energies = [energy for _, energy in self.terms]
        self.whole_sequence = any(energy.whole_sequence for energy in energies)
        self.block = joined_block(energy.block for energy in energies)
        self.proposal = _common_proposal(energies)
        self.networks = nn.ModuleList(energy for energy in energies if isinstance(energy, nn.Module))

    def forward(self, x, xt, t, log_p, context):
        total = torch.zeros(log_p.shape, dtype=torch.float64, device=log_p.device)
        for weight, energy in self.terms:
            total += weight * self._by_group(energy, x, xt, t, log_p, context)
        return total

    def _by_group(self, energy: AnyEnergy, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor):
        """Return E of one term, summed by the groups of this sum."""
        known = energy.block == self.block
        if not known:  # by smaller groups, log p is not in `log_p`
            groups = equations.group_count(x.shape[-1], energy.block)
            log_p = torch.full((*x.shape[:2], groups), math.nan, device=x.device)
        values = energy(x, xt, t, log_p, context).double()
        if not known and bool(values.isnan().any()):
            raise ConfigurationError(
                f"{type(energy).__name__} has blocks of {energy.block} and reads log p of each, and the sum has "
                f"{'one block' if self.block is None else f'blocks of {self.block}'}; give all terms the same blocks"
            )
        joined = None if self.block is None or energy.block is None else self.block // energy.block
        return equations.sum_by_group(values, joined)


def joined_block(terms: Iterable[int | None]) -> int | None:
    """Return the length of the smallest blocks that whole blocks of every term fill; None: the whole canvas.

    Examples:
        >>> joined_block([8, 12]), joined_block([8, None])
        (24, None)
    """
    blocks = list(terms)
    return None if None in blocks or not blocks else math.lcm(*(block for block in blocks if block))


def _common_proposal(energies: Sequence[AnyEnergy]) -> Any:
    """Return the proposal of all energies, None if none has one. Raise ConfigurationError if they differ."""
    proposals = [proposal_of(energy) for energy in energies]
    for energy, proposal in zip(energies, proposals, strict=True):
        if proposal is not proposals[0]:
            raise ConfigurationError(
                f"{type(energies[0]).__name__} and {type(energy).__name__} do not add up: candidates come from one "
                f"distribution, and these are residuals of {_distribution(proposals[0])} and {_distribution(proposal)}"
            )
    return proposals[0] if proposals else None


def _distribution(proposal: object) -> str:
    return "p_theta" if proposal is None else f"the proposal of a {type(proposal).__name__}"


class Decoder(Protocol):
    """What a reward needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Reward(AbstractEnergy):
    """E(x_0) = -r(text of x_0), of a user's function r of texts: high reward is low energy.

    `function` takes a list of texts and returns one number for each: a list, an array or a tensor. A text is that of
    the whole canvas: with a prompt, with what is cut off behind the tokens asked for, and with separators spelled out.
    The number may depend on that text alone, or bounds and seeds mean nothing; -infinity forbids a text. `mask` is the
    denoiser's. Copies share the function.

    Raise ValueError, with the text, for a number that is NaN or +infinity.

    Examples:
        >>> from edlm.data.tokenizer_kinds import Characters
        >>> tokenizer = Characters().build([])
        >>> liked = Reward(lambda texts: [text.count("e") for text in texts], tokenizer, mask=tokenizer.size)
        >>> liked.of(["the tree", "a"])
        tensor([3., 0.], dtype=torch.float64)
        >>> WeightedSum([(2.0, liked)]).whole_sequence
        True
    """

    whole_sequence = True

    def __init__(self, function: Callable[[list[str]], Any], tokenizer: Decoder, mask: int) -> None:
        super().__init__()
        self.function, self.tokenizer, self.mask = function, tokenizer, mask

    def forward(self, x, xt, t, log_p, context):
        filled = equations.carry_over(xt[:, None].expand_as(x), x, (xt == self.mask)[:, None].expand_as(x))
        texts = [self.tokenizer.decode(ids) for ids in filled.flatten(0, 1).tolist()]
        return -self.of(texts).to(x.device).unflatten(0, x.shape[:2])[..., None]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Reward":
        return self  # the user's function need not be one that can be copied

    def of(self, texts: list[str]) -> Float64[Tensor, " n"]:
        """Return the reward of each text."""
        rewards = torch.as_tensor(self.function(texts), dtype=torch.float64)
        if rewards.shape != (len(texts),):
            raise ValueError(
                f"the reward of {len(texts)} texts has shape {list(rewards.shape)}; return one number for each text"
            )
        impossible = rewards.isnan() | (rewards == math.inf)
        if impossible.any():
            i = int(impossible.nonzero()[0])
            raise ValueError(f"the reward is {rewards[i]:g} for {texts[i]!r}; return a finite number, or -inf")
        return rewards
