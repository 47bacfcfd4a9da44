"""What every energy is: a number for each group of each candidate, LOW where the candidate is likely text."""

from abc import abstractmethod
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edlm.cooperative import Bites


class AbstractEnergy(nn.Module):
    """An energy; anything callable with this signature and these attributes serves, a lookup table too."""

    whole_sequence: bool
    block: int | None = None
    normalised: bool = False  # True: Z = 1 exactly, and `drawing` samples p_theta exp(-E) itself
    proposal: "AbstractEnergy | None"
    """A normalised energy, from whose law candidates are drawn and against which E is a residual; None: p_theta."""

    def __init__(self) -> None:
        super().__init__()
        self.proposal = None  # not in the class, where it would hide the module that a subclass sets

    @abstractmethod
    def forward(
        self,
        x: Int[Tensor, "b k l"],
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        log_p: Float[Tensor, "b k g"],
        context: Float[Tensor, "b l h"],
    ) -> Float[Tensor, "b k g"]:
        """E of k candidates of each sequence, by group.

        `log_p` is log p_theta (or of the proposal's law) of the candidates' drawn tokens, summed by group; `context` is
        what the denoiser read in x_t. Candidates of one sequence fill the same positions; where x_t is not masked, x_t
        is read.
        """


class AnyDenoiser(Protocol):
    """What the sampler and the estimates ask of a denoiser: a network, or a lookup table."""

    mask: int
    vocabulary: int

    def read(self, xt: Tensor, t: Tensor) -> Tensor: ...

    def log_p(self, context: Tensor, where: Tensor) -> Tensor: ...


@runtime_checkable
class ReadsSome(Protocol):
    """A denoiser that has less work where its context is wanted at some positions alone."""

    def read_at(self, xt: Tensor, t: Tensor, where: Tensor) -> Tensor: ...


class AnyEnergy(Protocol):
    """What they ask of an energy: see `edlm.energies.kinds.AbstractEnergy`."""

    whole_sequence: bool
    block: int | None

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor: ...


@runtime_checkable
class NormalisedEnergy(AnyEnergy, Protocol):
    """An energy with Z = 1, which samples p_theta exp(-E) itself, and says log p of each token that it drew.

    Whatever goes token by token lets others in between: a bite is a token.
    """

    def drawing(self, xt: Tensor, where: Tensor, context: Tensor, u: Tensor) -> Bites[tuple[Tensor, Tensor]]: ...


@runtime_checkable
class Proposal(NormalisedEnergy, Protocol):
    """A normalised energy whose law others draw their candidates from."""

    def log_p(self, x: Tensor, xt: Tensor, context: Tensor) -> Tensor: ...


def proposal_of(energy: AnyEnergy) -> Proposal | None:
    """The energy whose law candidates come from where it is not the denoiser's."""
    return getattr(energy, "proposal", None)


def read(denoiser: AnyDenoiser, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], where: Bool[Tensor, "b l"]) -> Tensor:
    """The context of the sequences, which need not be right but at the selected positions."""
    return denoiser.read_at(xt, t, where) if isinstance(denoiser, ReadsSome) else denoiser.read(xt, t)


@runtime_checkable
class Verifiable(Protocol):
    """A normalised energy that reads a whole draft in one pass, and then tells p_c of any token of it.

    What it tells at a position depends on the draft's tokens before the position alone, so that one reading serves
    both the verdict on a token and the law that its successor is drawn from.
    """

    def read(self, x: Tensor, xt: Tensor, context: Tensor) -> Tensor: ...

    def log_p_of(self, features: Tensor, where: Tensor, x: Tensor) -> Tensor: ...

    def distribution(self, features: Tensor, where: Tensor) -> Tensor: ...
