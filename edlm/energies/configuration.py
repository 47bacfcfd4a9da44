"""Base of the energies' configurations: what the stages know of an energy before it is built."""

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from torch import nn

from edlm.config import ConfigurationError
from edlm.interfaces import AbstractEnergy
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser

M = TypeVar("M", bound=nn.Module)


class AbstractEnergyConfig(ABC):
    """Settings of an energy; a subclass stands in the file of its network and in the union of `edlm.energies.kinds`.

    What else must be known of the energy are attributes of its network: `network.whole_sequence`, `network.normalised`.
    """

    network: ClassVar[type[AbstractEnergy]]
    """Class of the energy that `build` returns."""
    built_on: ClassVar[type[nn.Module] | None] = None
    """Class of the trained model that it needs besides the denoiser: an autoregressive model's, or another energy's."""
    trained: ClassVar[bool] = True
    """Whether it has weights of its own to train; if not, its weights are those of the model that it is built on."""
    block: int | None = None
    """Positions per block of a step energy; None: one block, the whole canvas."""

    @property
    def needs_autoregressive(self) -> bool:
        """Whether it is built on the autoregressive model."""
        return self.built_on is AbstractAutoregressiveModel

    @property
    def needs_energy(self) -> bool:
        """Whether it is built on another energy, which is trained first."""
        return self.built_on is not None and issubclass(self.built_on, AbstractEnergy)

    def accepts(self, other: "AbstractEnergyConfig") -> bool:
        """Return whether it can be built on the energy that `other` configures."""
        return self.built_on is not None and issubclass(other.network, self.built_on)

    @abstractmethod
    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> AbstractEnergy:
        """Build the energy with fresh weights, on `base` where it needs one.

        Raise ConfigurationError if `base` is not a `built_on`.
        """


def required(cls: type[M], base: nn.Module | None, kind: str) -> M:
    """Return the model that an energy of this kind is built on. Raise ConfigurationError unless it is a `cls`."""
    if not isinstance(base, cls):
        given = "none" if base is None else type(base).__name__
        raise ConfigurationError(f"energy {kind!r} is built on a model of class {cls.__name__}, and {given} was given")
    return base
