"""Interfaces of energies and denoisers. An energy is one number per candidate and group, LOW where text is likely."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import TypeVar

from edlm.cooperative_work import Cooperative
from edlm.schedule import AbstractSchedule


class AbstractEnergy(nn.Module):
    """Base class of energies; any callable with this signature and these attributes works, such as a lookup table."""

    whole_sequence: bool
    block: int | None = None
    normalised: bool = False  # True: Z = 1 exactly, and `draw` samples p_theta exp(-E) itself
    additive: bool = False
    """Whether E - log p_theta is a sum over the masked positions of terms that depend neither on t nor on the others'
    being masked; `edlm.likelihood.carry_over_autoregressive` then averages the paper's estimator in closed form."""
    takes_positions: bool = False
    """Whether `forward` takes one more argument: the positions that the candidates fill, [b l] on the host, or None.
    An energy that looks for them makes the host wait for a device."""
    proposal: "AbstractEnergy | None"
    """Normalised energy that candidates are drawn from and against which E is a residual; None: p_theta."""

    def __init__(self) -> None:
        super().__init__()
        self.proposal = None  # not a class attribute, which would hide the module that a subclass sets

    @abstractmethod
    def forward(
        self,
        x: Int[Tensor, "b k l"],
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        log_p: Float[Tensor, "b k g"],
        context: Float[Tensor, "b l h"],
    ) -> Float[Tensor, "b k g"]:
        """Compute E of k candidates per sequence, by group.

        `log_p` is the log-probability of the candidates' drawn tokens under p_theta (or the proposal), summed by group;
        `context` is the result of the denoiser's `read` of x_t. Candidates of one sequence fill the same positions;
        where x_t is unmasked, x_t is read instead of x.
        """


@runtime_checkable
class AnyDenoiser(Protocol):
    """Denoiser as the sampler and the estimates use it: a network or a lookup table."""

    mask: int
    vocabulary: int

    def read(self, xt: Tensor, t: Tensor) -> Tensor: ...

    def log_p(self, context: Tensor, where: Tensor) -> Tensor: ...


@runtime_checkable
class ReadsSelected(Protocol):
    """Denoiser that computes the context at selected positions only, for less work."""

    def read_at(self, xt: Tensor, t: Tensor, where: Tensor) -> Tensor: ...


@runtime_checkable
class AnyEnergy(Protocol):
    """Energy as the sampler and the estimates use it: see `AbstractEnergy`."""

    whole_sequence: bool
    block: int | None

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor: ...


@runtime_checkable
class NormalisedEnergy(AnyEnergy, Protocol):
    """Energy with Z = 1 that samples p_theta exp(-E) itself and returns log p of each token drawn.

    Token-by-token sampling is cooperative work with a pause after every token.
    """

    def draw(self, xt: Tensor, where: Tensor, context: Tensor, u: Tensor) -> Cooperative[tuple[Tensor, Tensor]]: ...


@runtime_checkable
class Proposal(NormalisedEnergy, Protocol):
    """Normalised energy from whose distribution other energies draw their candidates."""

    def log_p(self, x: Tensor, xt: Tensor, context: Tensor) -> Tensor: ...


D = TypeVar("D", bound=AnyDenoiser, covariant=True, default=AnyDenoiser)
E = TypeVar("E", bound=AnyEnergy | None, covariant=True, default=AnyEnergy | None)


@dataclass(frozen=True)
class Model(Generic[D, E]):
    """Denoiser, energy (None: plain diffusion) and schedule: with a sampler, they define a distribution over texts.

    `Model[AnyDenoiser, AnyEnergy]` is one that has an energy.
    """

    denoiser: D
    energy: E
    schedule: AbstractSchedule

    @property
    def block(self) -> int | None:
        """Length of the position groups that the energy scores separately; None: all positions are one group."""
        return None if self.energy is None else self.energy.block


def proposal_of(energy: AnyEnergy) -> Proposal | None:
    """Return the energy that candidates are drawn from, or None if they are drawn from the denoiser."""
    return getattr(energy, "proposal", None)


def read(denoiser: AnyDenoiser, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], where: Bool[Tensor, "b l"]) -> Tensor:
    """Compute the context of the sequences, which may be valid at the selected positions only."""
    return denoiser.read_at(xt, t, where) if isinstance(denoiser, ReadsSelected) else denoiser.read(xt, t)


def score(
    energy: AnyEnergy,
    x: Int[Tensor, "b k l"],
    xt: Int[Tensor, "b l"],
    t: Float[Tensor, " b"],
    log_p: Float[Tensor, "b k g"],
    context: Tensor,
    new: Bool[Tensor, "b l"] | None,
) -> Float[Tensor, "b k g"]:
    """Return the energy of candidates that fill the positions `new`; None: the energy finds them."""
    if new is None or not getattr(energy, "takes_positions", False):
        return energy(x, xt, t, log_p, context)
    return energy(x, xt, t, log_p, context, new)  # pyright: ignore[reportCallIssue]


@runtime_checkable
class VerifiesDrafts(Protocol):
    """Normalised energy that reads a whole speculative draft in one pass and then returns p_c of any of its tokens.

    The result at a position depends only on the draft's tokens before it, so that one pass serves both the verdict on a
    token and the distribution that its replacement is drawn from. Masks may be on the host, for a device that need not
    be waited for; `new` are the positions of the draft (None: the energy finds them).
    """

    def read(self, x: Tensor, xt: Tensor, context: Tensor, new: Tensor | None = None) -> Tensor: ...

    def log_p_of(self, features: Tensor, where: Tensor, x: Tensor) -> Tensor: ...

    def distribution(self, features: Tensor, where: Tensor) -> Tensor: ...
