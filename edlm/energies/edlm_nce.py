"""EDLM's NCE energy in its published layout, as an energy of an experiment."""

from typing import Literal

from torch import nn

from edlm.config import config
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.models.denoiser import AbstractDenoiser
from edlm.published.conditioning import PublishedTransformerConfig
from edlm.published.energy import PublishedEnergy


@config
class EDLMEnergyConfig(PublishedTransformerConfig, AbstractEnergyConfig):
    """EDLM's NCE energy in its published layout; `python -m workflows.import_published` makes one of a checkpoint."""

    network = PublishedEnergy
    kind: Literal["edlm_nce"] = "edlm_nce"

    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> PublishedEnergy:
        return PublishedEnergy(self, denoiser.vocabulary)
