"""From a model folder to its network, and from a network's weights to a model folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic
from torch import Tensor, nn

from edlm.abstract_energy import AbstractEnergy
from edlm.autoregressive import AutoregressiveModel
from edlm.checkpoint import TOKENIZER, ModelCard, digest, load_into, load_weights, open_folder, save_model
from edlm.config import config, parse, plain
from edlm.denoiser import Denoiser
from edlm.energy import Conditional, EnergyConfig
from edlm.schedule import LogLinear, ScheduleConfig
from edlm.tokenizer import open_tokenizer
from edlm.transformer import Trunk

Facts = Mapping[str, pydantic.JsonValue]
M = TypeVar("M", bound=nn.Module)


@config
class EnergyNetwork:
    """What it takes to build an energy: its kind, the denoiser it was made for, and the model that it is built on."""

    energy: Annotated[EnergyConfig, pydantic.Field(discriminator="kind")]
    denoiser_digest: str
    autoregressive: Trunk | None = None
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


@config
class _Network:
    trunk: Trunk


@config
class _Schedule:
    schedule: Annotated[ScheduleConfig, pydantic.Field(discriminator="kind")] = LogLinear()


@dataclass(frozen=True)
class OpenDenoiser:
    """A denoiser with what its folder says of it."""

    network: Denoiser
    schedule: ScheduleConfig
    length: int
    folder: Path

    @property
    def digest(self) -> str:
        return digest(self.folder)


def save_denoiser(
    folder: Path,
    weights: Mapping[str, Tensor],
    trunk: Trunk,
    schedule: ScheduleConfig,
    length: int,
    tokenizer_file: Path,
    facts: Facts,
) -> str:
    """Afterwards `folder` holds the denoiser; its digest."""
    network = plain(_Network(trunk=trunk))
    return _save(folder, "denoiser", network, weights, length, tokenizer_file, facts, plain(schedule))


def open_denoiser(folder: Path) -> OpenDenoiser:
    """The denoiser in a model folder, ready to run. ValueError where the folder is damaged or holds something else."""
    card = _card(folder, "denoiser")
    network = _filled(Denoiser(parse(_Network, card.network, str(folder)).trunk, card.vocabulary), folder)
    schedule = parse(_Schedule, {"schedule": card.schedule}, str(folder)).schedule
    return OpenDenoiser(network, schedule, card.length, folder)


def save_autoregressive(
    folder: Path, weights: Mapping[str, Tensor], trunk: Trunk, length: int, tokenizer_file: Path, facts: Facts
) -> str:
    """Afterwards `folder` holds the autoregressive model; its digest."""
    return _save(folder, "autoregressive", plain(_Network(trunk=trunk)), weights, length, tokenizer_file, facts, None)


def open_autoregressive(folder: Path) -> AutoregressiveModel:
    """The autoregressive model in a model folder, ready to run."""
    card = _card(folder, "autoregressive")
    return _filled(AutoregressiveModel(parse(_Network, card.network, str(folder)).trunk, card.vocabulary), folder)


def save_energy(
    folder: Path, weights: Mapping[str, Tensor], network: EnergyNetwork, length: int, tokenizer_file: Path, facts: Facts
) -> str:
    """Afterwards `folder` holds the energy, which names the denoiser it belongs to; its digest."""
    return _save(folder, "energy", plain(network), weights, length, tokenizer_file, facts, None)


def open_energy(folder: Path, denoiser: OpenDenoiser) -> AbstractEnergy:
    """The energy in a model folder, on the denoiser it was made for.

    Raises ValueError where it was made for another denoiser: an energy is a ratio against that one's probabilities.
    """
    card = _card(folder, "energy")
    network = parse(EnergyNetwork, card.network, str(folder))
    if network.denoiser_digest != denoiser.digest:
        raise ValueError(
            f"the energy in {folder} was made for the denoiser {network.denoiser_digest[:12]}, "
            f"not for {denoiser.digest[:12]} in {denoiser.folder}; run the finetune stage for this denoiser"
        )
    return _filled(network.build(denoiser.network), folder)


def _card(folder: Path, kind: str) -> ModelCard:
    card = open_folder(folder)
    if card.kind != kind:
        raise ValueError(f"{folder} holds a model of kind {card.kind!r}, and a {kind!r} is needed")
    tokenizer = open_tokenizer(folder)
    card.require_tokenizer(tokenizer.digest, tokenizer.size)
    return card


def _save(
    folder: Path,
    kind,
    network: dict[str, pydantic.JsonValue],
    weights: Mapping[str, Tensor],
    length: int,
    tokenizer_file: Path,
    facts: Facts,
    schedule: dict[str, pydantic.JsonValue] | None,
) -> str:
    tokenizer = open_tokenizer(tokenizer_file.parent)
    card = ModelCard(
        kind=kind,
        network=network,
        vocabulary=tokenizer.size,
        length=length,
        schedule=schedule,
        tokenizer_digest=tokenizer.digest,
        trained=dict(facts),
    )
    assert tokenizer_file.name == TOKENIZER
    return save_model(folder, card, weights, tokenizer_file)


def _filled(module: M, folder: Path) -> M:
    load_into(module, load_weights(folder))
    return module.eval().requires_grad_(False)
