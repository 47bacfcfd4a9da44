"""Denoisers and autoregressive models in model folders: saving and opening."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic
from torch import Tensor, nn

from edlm.checkpoints.model_folder import TOKENIZER, ModelCard, digest, load_into, load_weights, open_folder, save_model
from edlm.config import config, parse, plain
from edlm.data.tokenizer import open_tokenizer
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear, ScheduleConfig

Facts = Mapping[str, pydantic.JsonValue]
M = TypeVar("M", bound=nn.Module)


@config
class _Network:
    trunk: TransformerConfig


@config
class _Schedule:
    schedule: Annotated[ScheduleConfig, pydantic.Field(discriminator="kind")] = LogLinear()


@dataclass(frozen=True)
class OpenDenoiser:
    """A denoiser with the facts recorded in its model folder."""

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
    transformer: TransformerConfig,
    schedule: ScheduleConfig,
    length: int,
    tokenizer_file: Path,
    facts: Facts,
) -> str:
    """Write the denoiser to `folder` and return its digest."""
    network = plain(_Network(trunk=transformer))
    return save_network(folder, "denoiser", network, weights, length, tokenizer_file, facts, plain(schedule))


def open_denoiser(folder: Path) -> OpenDenoiser:
    """Open the denoiser in a model folder, ready for inference.

    Raise ValueError if the folder is damaged or holds another kind of model.
    """
    card = open_card(folder, "denoiser")
    network = filled(Denoiser(parse(_Network, card.network, str(folder)).trunk, card.vocabulary), folder)
    schedule = parse(_Schedule, {"schedule": card.schedule}, str(folder)).schedule
    return OpenDenoiser(network, schedule, card.length, folder)


def save_autoregressive(
    folder: Path,
    weights: Mapping[str, Tensor],
    transformer: TransformerConfig,
    length: int,
    tokenizer_file: Path,
    facts: Facts,
) -> str:
    """Write the autoregressive model to `folder` and return its digest."""
    return save_network(
        folder, "autoregressive", plain(_Network(trunk=transformer)), weights, length, tokenizer_file, facts, None
    )


def open_autoregressive(folder: Path) -> AutoregressiveModel:
    """Open the autoregressive model in a model folder, ready for inference."""
    card = open_card(folder, "autoregressive")
    return filled(AutoregressiveModel(parse(_Network, card.network, str(folder)).trunk, card.vocabulary), folder)


def open_card(folder: Path, kind: str) -> ModelCard:
    card = open_folder(folder)
    if card.kind != kind:
        raise ValueError(f"{folder} holds a model of kind {card.kind!r}, and a {kind!r} is needed")
    tokenizer = open_tokenizer(folder)
    card.require_tokenizer(tokenizer.digest, tokenizer.size)
    return card


def save_network(
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


def filled(module: M, folder: Path) -> M:
    load_into(module, load_weights(folder))
    return module.eval().requires_grad_(False)
