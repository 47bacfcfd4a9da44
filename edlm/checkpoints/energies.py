"""From an energy's folder to its network, and from its weights to a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pydantic
from torch import Tensor

from edlm.checkpoints.networks import (
    Facts,
    OpenDenoiser,
    filled,
    open_card,
    save_network,
)
from edlm.config import config, parse, plain
from edlm.energies.kinds import Conditional, EnergyConfig
from edlm.interfaces import AbstractEnergy
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig


@config
class EnergyNetwork:
    """What it takes to build an energy: its kind, the denoiser it was made for, and the model that it is built on."""

    energy: Annotated[EnergyConfig, pydantic.Field(discriminator="kind")]
    denoiser_digest: str
    autoregressive: TransformerConfig | None = None
    """Of `ar` and `coar`."""
    conditional: Conditional | None = None
    """Of `residual`."""

    def build(self, denoiser: Denoiser) -> AbstractEnergy:
        """The energy with weights that are still to be filled, those of the model that it is built on among them."""
        borrowed = None
        if self.autoregressive is not None:
            borrowed = AutoregressiveModel(self.autoregressive, denoiser.vocabulary)
        elif self.conditional is not None:
            borrowed = self.conditional.build(denoiser)
        return self.energy.build(denoiser, borrowed)


def save_energy(
    folder: Path, weights: Mapping[str, Tensor], network: EnergyNetwork, length: int, tokenizer_file: Path, facts: Facts
) -> str:
    """Afterwards `folder` holds the energy, which names the denoiser it belongs to; its digest."""
    return save_network(folder, "energy", plain(network), weights, length, tokenizer_file, facts, None)


def open_energy(folder: Path, denoiser: OpenDenoiser) -> AbstractEnergy:
    """The energy in a model folder, on the denoiser it was made for.

    Raises ValueError where it was made for another denoiser: an energy is a ratio against that one's probabilities.
    """
    card = open_card(folder, "energy")
    network = parse(EnergyNetwork, card.network, str(folder))
    if network.denoiser_digest != denoiser.digest:
        raise ValueError(
            f"the energy in {folder} was made for the denoiser {network.denoiser_digest[:12]}, "
            f"not for {denoiser.digest[:12]} in {denoiser.folder}; run the finetune stage for this denoiser"
        )
    return filled(network.build(denoiser.network), folder)
