"""Components of a registered model: its networks, its tokenizer and its default settings."""

from collections.abc import Mapping

from edlm.checkpoints.networks import OpenDenoiser
from edlm.config import Positive, config
from edlm.constraints.compilation import AutomatonCache
from edlm.data.tokenizer import Tokenizer
from edlm.interfaces import AbstractEnergy
from edlm.sampling.sampler import EXACT, Sampler


@config
class DataCard:
    """What the denoiser was trained on, as its users are told."""

    corpus: str
    """Kind of the corpus, `corpus.kind` of the experiment."""
    tokens: Positive
    """Tokens of the training split."""
    steps: Positive
    """Steps of the training."""
    examples: tuple[str, ...] = ()
    """Beginnings of documents of the validation split."""


@config
class Bundle:
    """Name and default generation settings of a registered model."""

    name: str
    energy: str | None = None
    """Energy that scores candidates; None: plain diffusion."""
    sampler: Sampler
    data: DataCard | None = None
    """None: not recorded, as for a denoiser that was trained elsewhere."""


class ModelComponents:
    """Denoiser with the energies made for it and their tokenizer."""

    def __init__(
        self, bundle: Bundle, denoiser: OpenDenoiser, energies: Mapping[str, AbstractEnergy], tokenizer: Tokenizer
    ) -> None:
        self.bundle, self.denoiser, self.energies, self.tokenizer = bundle, denoiser, energies, tokenizer
        self.viewed: ModelComponents | None = None
        """The components that these are a view of, with other LM heads; None: they are those of the model."""
        self.length, self.mask = denoiser.length, denoiser.network.mask
        self.automata = AutomatonCache(tokenizer)
        self.device = next(denoiser.network.parameters()).device

    @property
    def model(self) -> "ModelComponents":
        """The components as the model has them, at token temperature 1 and not truncated."""
        return self if self.viewed is None else self.viewed

    def energy_for(self, sampler: Sampler, name: str | None) -> AbstractEnergy | None:
        """Return the energy that scores the candidates of `sampler`: `name`, or the bundle's default.

        None if the sampler has a single candidate. Raise ValueError if there is no such energy, or if it cannot do what
        the sampler asks.
        """
        name = name or self.bundle.energy
        if name is not None and name not in self.energies:
            raise ValueError(f"energy {name!r} is not in this model; it has: {', '.join(self.energies) or 'none'}")
        if sampler.candidates == 1:
            return None
        if name is None:
            raise ValueError(f"candidates is {sampler.candidates}, and this model has no energy to choose with; give 1")
        if sampler.candidates == EXACT and not self.energies[name].normalised:
            raise ValueError(f"candidates is 0 (exact), and energy {name!r} is not normalised; give 1 or more")
        return self.energies[name]
