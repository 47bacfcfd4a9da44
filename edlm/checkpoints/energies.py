"""Energies in model folders: saving and opening."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pydantic
from torch import Tensor

from edlm.checkpoints.network_kinds import AutoregressiveConfig
from edlm.checkpoints.networks import (
    Facts,
    OpenDenoiser,
    autoregressive_config,
    filled,
    open_card,
    save_network,
)
from edlm.config import config, parse, plain
from edlm.energies.kinds import EnergyConfig
from edlm.interfaces import AbstractEnergy
from edlm.models.denoiser import AbstractDenoiser
from edlm.schedule import ScheduleConfig


@config
class EnergyNetwork:
    """Everything needed to build an energy: its kind, the denoiser it was made for, and the model it is built on."""

    energy: Annotated[EnergyConfig, pydantic.Field(discriminator="kind")]
    denoiser_digest: str
    autoregressive: AutoregressiveConfig | None = None
    """Network of the autoregressive model, if the energy is built on it."""
    base: "EnergyNetwork | None" = None
    """The other energy that it is built on, if any."""
    schedule: Annotated[ScheduleConfig, pydantic.Field(discriminator="kind")] | None = None
    """Schedule of that denoiser, whose times the energy is trained at. None: the folder does not record it."""

    def build(self, denoiser: AbstractDenoiser) -> AbstractEnergy:
        """Build the energy; its weights, including those of the model it is built on, are still to be loaded."""
        if self.autoregressive is not None:
            return self.energy.build(denoiser, self.autoregressive.build(denoiser.vocabulary))
        return self.energy.build(denoiser, None if self.base is None else self.base.build(denoiser))


def network_on(energy: EnergyConfig, denoiser: OpenDenoiser, base: Path | None = None) -> EnergyNetwork:
    """Return the network of an energy that is built on the model in the folder `base`, or on the denoiser alone."""
    made = EnergyNetwork(energy=energy, denoiser_digest=denoiser.digest, schedule=denoiser.schedule)
    if base is None:
        return made
    if energy.needs_autoregressive:
        return replace(made, autoregressive=autoregressive_config(base))
    return replace(made, base=_network(base))


def save_energy(
    folder: Path, weights: Mapping[str, Tensor], network: EnergyNetwork, length: int, tokenizer_file: Path, facts: Facts
) -> str:
    """Write the energy, with the digest of the denoiser that it belongs to, to `folder` and return its digest."""
    return save_network(folder, "energy", plain(network), weights, length, tokenizer_file, facts, None)


def open_energy(folder: Path, denoiser: OpenDenoiser) -> AbstractEnergy:
    """Open the energy in a model folder, on the denoiser that it was made for.

    Raise ValueError if it was made for another denoiser: an energy is a ratio against its own denoiser's probabilities.
    """
    network = _network(folder)
    if network.denoiser_digest != denoiser.digest:
        raise ValueError(
            f"the energy in {folder} was made for the denoiser {network.denoiser_digest[:12]}, "
            f"not for {denoiser.digest[:12]} in {denoiser.folder}; run the finetune stage for this denoiser"
        )
    return filled(network.build(denoiser.network), folder)


def _network(folder: Path) -> EnergyNetwork:
    return parse(EnergyNetwork, open_card(folder, "energy").network, str(folder))
