"""Which positions a step reveals: at random as the noise process says, or otherwise, at the price of ANOTHER LAW.

What a step reveals is drawn before its tokens and never looks at them. So a text has a bound along these paths, too
(docs/mathematics.md 4.4, 5.1; `edlm.likelihood.paths`).
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edlm import equations
from edlm.config import Fraction, config
from edlm.interfaces import AnyDenoiser
from edlm.models.readout import chunks
from edlm.schedule import AbstractSchedule

Shares = tuple[Float[Tensor, " b"], Float[Tensor, " b"]]


class AbstractReveal(ABC):
    """How a step from t to s chooses what it reveals."""

    final: ClassVar[bool] = True
    """Whether a token that is revealed never changes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """In tables and figures, beside the sampler's own name; empty for the noise process itself."""

    @abstractmethod
    def shares(self, t: Float[Tensor, " b"], s: Float[Tensor, " b"], schedule: AbstractSchedule) -> Shares:
        """(P(a masked position is revealed), P(one that was revealed is masked again)), each position on its own."""

    @abstractmethod
    def open(self, drawn: Bool[Tensor, "b l"], masked: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        """The positions among which `settle` chooses: there it looks at the context."""

    @abstractmethod
    def settle(
        self, drawn: Bool[Tensor, "b l"], xt: Int[Tensor, "b l"], context: Tensor, denoiser: AnyDenoiser
    ) -> Bool[Tensor, "b l"]:
        """U, as many masked positions of each row as were `drawn` at random, now that x_t has been read."""


@config
class AtRandom(AbstractReveal):
    """Each masked position on its own with probability (alpha_s - alpha_t) / (1 - alpha_t): the noise process."""

    kind: Literal["at_random"] = "at_random"

    @property
    def name(self) -> str:
        return ""

    def shares(self, t, s, schedule):
        return schedule.reveal(t, s), torch.zeros_like(t)

    def open(self, drawn, masked):
        return drawn

    def settle(self, drawn, xt, context, denoiser):
        return drawn


@config
class MostCertain(AbstractReveal):
    """ANOTHER LAW: as many as at random, but those whose likeliest token is the most probable; ties from the left.

    The order is a function of x_t alone. (By the probability of the token that was drawn there, as it is often done,
    what is revealed would depend on what it says, and no bound would be left.)
    """

    kind: Literal["most_certain"] = "most_certain"

    @property
    def name(self) -> str:
        return "most certain first"

    def shares(self, t, s, schedule):
        return schedule.reveal(t, s), torch.zeros_like(t)

    def open(self, drawn, masked):
        return masked & drawn.any(dim=1, keepdim=True)

    def settle(self, drawn, xt, context, denoiser):
        masked, wanted = xt == denoiser.mask, drawn.sum(dim=1, keepdim=True)
        # Where all or none are wanted there is nothing to choose, and the vocabulary is not asked.
        unsure = self.open(drawn, masked) & (wanted < masked.sum(dim=1, keepdim=True))
        certainty = torch.full(xt.shape, -torch.inf, dtype=torch.float64, device=xt.device)
        for chunk in chunks(unsure, denoiser.vocabulary):
            certainty[chunk] = denoiser.log_p(context, chunk).max(dim=-1).values.double()
        order = certainty.argsort(dim=1, descending=True, stable=True)
        place = torch.empty_like(order).scatter_(1, order, torch.arange(xt.shape[1], device=xt.device).expand_as(order))
        return torch.where(unsure.any(dim=1, keepdim=True), unsure & (place < wanted), drawn)


@config
class Remasking(AbstractReveal):
    """ANOTHER LAW: what was revealed may be masked again, and is then drawn anew (ReMDM, Wang et al. 2025).

    A step from t masks each revealed position again with probability sigma = share min(1, (1 - alpha_s) / alpha_t), and
    reveals so many more that the share of masked positions at every time is kept. What the canvas gave never changes.
    """

    final: ClassVar[bool] = False

    kind: Literal["remasking"] = "remasking"
    share: Fraction
    """eta, of the largest sigma that keeps the marginals; 0 is plain diffusion."""
    window: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Steps from a t within it mask again; the last step never does."""

    def __post_init__(self) -> None:
        low, high = self.window
        if low > high:
            raise ValueError(f"window is [from, to] with 0 <= from <= to <= 1; got [{low}, {high}]")

    @property
    def name(self) -> str:
        low, high = self.window
        where = "" if self.window == (0, 1) else f" at t from {low:g} to {high:g}"
        return f"remasking {self.share:g}{where}"

    def shares(self, t, s, schedule):
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        # A hair of tolerance, as in `Sampler.in_window`.
        inside = (t >= self.window[0] - 1e-9) & (t <= self.window[1] + 1e-9)
        again = torch.where(inside, self.share * equations.most_remasked(alpha_t, alpha_s), 0.0)
        return equations.reveal_beside_remasking(alpha_t, alpha_s, again), again

    def open(self, drawn, masked):
        return drawn

    def settle(self, drawn, xt, context, denoiser):
        return drawn


RevealConfig = AtRandom | MostCertain | Remasking
