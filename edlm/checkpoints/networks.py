"""Denoisers and autoregressive models in model folders: saving and opening."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic
from torch import Tensor, nn

from edlm.checkpoints.model_folder import TOKENIZER, ModelCard, digest, load_into, load_weights, open_folder, save_model
from edlm.checkpoints.network_kinds import AutoregressiveConfig, DenoiserConfig
from edlm.config import config, parse, plain
from edlm.data.chat_template import ChatTemplate
from edlm.data.token_file import CHAT
from edlm.data.tokenizer import open_tokenizer
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear, ScheduleConfig

Facts = Mapping[str, pydantic.JsonValue]
M = TypeVar("M", bound=nn.Module)


@config
class _DenoiserNetwork:
    network: DenoiserConfig


@config
class _AutoregressiveNetwork:
    network: AutoregressiveConfig


@config
class _Schedule:
    schedule: Annotated[ScheduleConfig, pydantic.Field(discriminator="kind")] = LogLinear()


@config
class _Chat:
    chat: ChatTemplate | None


@dataclass(frozen=True)
class OpenDenoiser:
    """A denoiser with the facts recorded in its model folder."""

    network: AbstractDenoiser
    schedule: ScheduleConfig
    length: int
    folder: Path
    chat: ChatTemplate | None = None
    """Template of the conversations in the data that it was trained on or imported for; None: it holds none."""

    @property
    def digest(self) -> str:
        return digest(self.folder)


def save_denoiser(
    folder: Path,
    weights: Mapping[str, Tensor],
    network: TransformerConfig | DenoiserConfig,
    schedule: ScheduleConfig,
    length: int,
    tokenizer_file: Path,
    facts: Facts,
) -> str:
    """Write the denoiser to `folder` and return its digest."""
    return save_network(folder, "denoiser", plain(network), weights, length, tokenizer_file, facts, plain(schedule))


def open_denoiser(folder: Path) -> OpenDenoiser:
    """Open the denoiser in a model folder, ready for inference.

    Raise ValueError if the folder is damaged or holds another kind of model.
    """
    card = open_card(folder, "denoiser")
    network = _denoiser_config(card, folder).build(card.vocabulary)
    schedule = parse(_Schedule, {"schedule": card.schedule}, str(folder)).schedule
    chat = parse(_Chat, {"chat": card.trained.get(CHAT)}, str(folder)).chat
    return OpenDenoiser(filled(network, folder), schedule, card.length, folder, chat)


def denoiser_config(folder: Path) -> DenoiserConfig:
    """Return the network's configuration of the denoiser in a model folder."""
    return _denoiser_config(open_card(folder, "denoiser"), folder)


def save_autoregressive(
    folder: Path,
    weights: Mapping[str, Tensor],
    network: TransformerConfig | AutoregressiveConfig,
    length: int,
    tokenizer_file: Path,
    facts: Facts,
) -> str:
    """Write the autoregressive model to `folder` and return its digest."""
    return save_network(folder, "autoregressive", plain(network), weights, length, tokenizer_file, facts, None)


def open_autoregressive(folder: Path) -> AbstractAutoregressiveModel:
    """Open the autoregressive model in a model folder, ready for inference."""
    card = open_card(folder, "autoregressive")
    return filled(_autoregressive_config(card, folder).build(card.vocabulary), folder)


def autoregressive_config(folder: Path) -> AutoregressiveConfig:
    """Return the network's configuration of the autoregressive model in a model folder."""
    return _autoregressive_config(open_card(folder, "autoregressive"), folder)


def network_settings(card: ModelCard) -> dict[str, pydantic.JsonValue]:
    """Return the plain configuration of a model's network.

    Folders written when there were only transformers nest it under `trunk` and do not name its kind.
    """
    if card.kind == "energy":
        return card.network
    nested = card.network.get("trunk")
    return {"kind": "transformer", **(nested if isinstance(nested, dict) else card.network)}


def _denoiser_config(card: ModelCard, folder: Path) -> DenoiserConfig:
    return parse(_DenoiserNetwork, {"network": network_settings(card)}, str(folder)).network


def _autoregressive_config(card: ModelCard, folder: Path) -> AutoregressiveConfig:
    return parse(_AutoregressiveNetwork, {"network": network_settings(card)}, str(folder)).network


def open_card(folder: Path, kind: str) -> ModelCard:
    card = open_folder(folder)
    if card.kind != kind:
        raise ValueError(
            f"{folder} holds a model of kind {card.kind!r}, and a {kind!r} is needed; "
            f"give the output of a stage that trains one"
        )
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
