"""Selection of the positions that a step unmasks: at random as in the noise process, or in ANOTHER DISTRIBUTION.

Positions are selected before their tokens are drawn and independently of them. So a text has a bound along these paths,
too (docs/mathematics.md 4.4, 5.1; `edlm.likelihood.unmasking_paths`).
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from edlm import equations
from edlm.config import Fraction, config
from edlm.interfaces import AnyDenoiser
from edlm.models.readout import chunks
from edlm.schedule import AbstractSchedule

Shares = tuple[Float[Tensor, " b"], Float[Tensor, " b"]]


class AbstractUnmasking(ABC):
    """Rule by which a step from t to s selects the positions to unmask."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Label in tables and figures, next to the sampler's name; empty for the noise process itself."""

    @abstractmethod
    def shares(self, t: Float[Tensor, " b"], s: Float[Tensor, " b"], schedule: AbstractSchedule) -> Shares:
        """Return (P(a masked position is unmasked), P(an unmasked one is masked again)), independent per position."""

    @abstractmethod
    def draw(
        self,
        masked: Bool[Tensor, "b l"],
        given: Bool[Tensor, "b l"] | None,
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        schedule: AbstractSchedule,
        u: Float64[Tensor, "b l"],
    ) -> Bool[Tensor, "b l"]:
        """Return masked positions to unmask, from uniforms u; `settle` may replace them by as many others.

        `given`: positions where the canvas held text from the start; None if the rule does not need them.
        """

    @abstractmethod
    def open(self, drawn: Bool[Tensor, "b l"], masked: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
        """Return the positions among which `settle` selects, and where it reads the context."""

    @abstractmethod
    def settle(
        self, drawn: Bool[Tensor, "b l"], xt: Int[Tensor, "b l"], context: Tensor, denoiser: AnyDenoiser
    ) -> Bool[Tensor, "b l"]:
        """Return U, as many masked positions per row as were `drawn` at random, given the context of x_t."""


@config
class AtRandom(AbstractUnmasking):
    """The noise process: each masked position independently with probability (alpha_s - alpha_t) / (1 - alpha_t)."""

    kind: Literal["at_random"] = "at_random"

    @property
    def name(self) -> str:
        return ""

    def shares(self, t, s, schedule):
        return schedule.unmask_probability(t, s), torch.zeros_like(t)

    def draw(self, masked, given, t, s, schedule, u):
        return equations.unmask(masked, self.shares(t, s, schedule)[0], u)

    def open(self, drawn, masked):
        return drawn

    def settle(self, drawn, xt, context, denoiser):
        return drawn


@config
class MostCertain(AbstractUnmasking):
    """ANOTHER DISTRIBUTION: the positions with the most probable tokens are unmasked first, ties from the left.

    The order is by the probability of the likeliest token, a function of x_t alone. (Ordered by the probability of the
    drawn token, as is often done, the selected positions would depend on their tokens, and no bound would hold.)
    With fixed counts, the positions of every step are a function of the text alone, and its likelihood is computed
    exactly (`edlm.likelihood.exact_order`; DUEL, Turok et al. 2026).
    """

    kind: Literal["most_certain"] = "most_certain"
    counts: Literal["drawn", "fixed"] = "drawn"
    """How many positions a step unmasks. `drawn`: as many as at random; `fixed`: leave round(n (1 - alpha_s)) of the n
    positions to fill masked."""

    @property
    def name(self) -> str:
        return "most certain first" + (" in fixed counts" if self.counts == "fixed" else "")

    def shares(self, t, s, schedule):
        return schedule.unmask_probability(t, s), torch.zeros_like(t)

    def draw(self, masked, given, t, s, schedule, u):
        if self.counts == "drawn":
            return equations.unmask(masked, self.shares(t, s, schedule)[0], u)
        assert given is not None
        count = masked.sum(dim=1) - equations.masked_on_average((~given).sum(dim=1), schedule.alpha(s))
        return masked & (masked.cumsum(dim=1) <= count[:, None])  # any of them: only the number counts

    def open(self, drawn, masked):
        return masked & drawn.any(dim=1, keepdim=True)

    def settle(self, drawn, xt, context, denoiser):
        masked, count = xt == denoiser.mask, drawn.sum(dim=1, keepdim=True)
        # If all or none are to be unmasked there is no choice, and the LM head is not called.
        eligible = self.open(drawn, masked) & (count < masked.sum(dim=1, keepdim=True))
        certainty = torch.full(xt.shape, -torch.inf, dtype=torch.float64, device=xt.device)
        for chunk in chunks(eligible, denoiser.vocabulary):
            certainty[chunk] = denoiser.log_p(context, chunk).max(dim=-1).values.double()
        order = certainty.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(xt.shape[1], device=xt.device).expand_as(order))
        return torch.where(eligible.any(dim=1, keepdim=True), eligible & (rank < count), drawn)


@config
class Remasking(AbstractUnmasking):
    """ANOTHER DISTRIBUTION: unmasked positions may be masked again and redrawn (ReMDM, Wang et al. 2025).

    A step from t masks each unmasked position again with probability sigma = share min(1, (1 - alpha_s) / alpha_t), and
    unmasks more to preserve the share of masked positions at every time. Text given in the canvas never changes.
    """

    kind: Literal["remasking"] = "remasking"
    share: Fraction
    """eta, the fraction of the largest sigma that preserves the marginals; 0 is plain diffusion."""
    window: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Steps from a t within the window mask again; the last step never does."""

    def __post_init__(self) -> None:
        low, high = self.window
        if low > high:
            raise ValueError(f"window is [from, to] with 0 <= from <= to <= 1; got [{low}, {high}]")

    @property
    def name(self) -> str:
        low, high = self.window
        suffix = "" if self.window == (0, 1) else f" at t from {low:g} to {high:g}"
        return f"remasking {self.share:g}{suffix}"

    def shares(self, t, s, schedule):
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        # Tolerance for rounding, as in `Sampler.in_window`.
        inside = (t >= self.window[0] - 1e-9) & (t <= self.window[1] + 1e-9)
        sigma = torch.where(inside, self.share * equations.most_remasked(alpha_t, alpha_s), 0.0)
        return equations.unmask_probability(alpha_t, alpha_s, sigma), sigma

    def draw(self, masked, given, t, s, schedule, u):
        return equations.unmask(masked, self.shares(t, s, schedule)[0], u)

    def open(self, drawn, masked):
        return drawn

    def settle(self, drawn, xt, context, denoiser):
        return drawn


UnmaskingConfig = AtRandom | MostCertain | Remasking
