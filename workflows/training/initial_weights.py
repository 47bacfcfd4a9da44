"""Weights of another model that a stage starts from (`init_from`), and their strict comparison with what it trains."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edlm.checkpoints.model_folder import CARD, ModelCard, load_into, load_weights, open_folder
from edlm.checkpoints.networks import network_settings
from edlm.config import ConfigurationError, from_yaml, plain
from edlm.data.token_file import read_summary
from edlm.local_copies import local_copy
from edlm.storage import absolute, committed, join, read_text
from edlm.training.resume_compatibility import REPORTING
from edlm.training.settings import Training


def training_settings(training: Training) -> dict[str, Any]:
    """Return the plain settings that determine a result.

    Of `init_from` the content counts, which is an input; how often a training reports and saves its state is of no
    influence.
    """
    return {name: value for name, value in plain(training).items() if name not in ("init_from", *REPORTING)}


def initial_input(training: Training) -> dict[str, str]:
    """Return the model of `init_from` as an input of a stage, by label; empty if there is none.

    Raise ConfigurationError unless a committed folder is there.
    """
    if training.init_from is None:
        return {}
    uri = absolute(training.init_from)
    if committed(uri) is None:
        raise ConfigurationError(
            f"init_from: {uri} holds no finished model; name a stage's output, or publish a folder that was saved from "
            "Python (edlm.storage.publish(folder, str(folder)))"
        )
    return {"init_from": uri}


def require_card(
    uri: str, kind: str, network: Mapping[str, Any], schedule: Mapping[str, Any] | None = None, whole: bool = True
) -> None:
    """Raise ConfigurationError, naming both values, unless the card of the model at `uri` agrees; only it is read.

    Without `whole`, `network` is the part of the configuration that is known before other models are there.
    """
    try:
        card = from_yaml(ModelCard, read_text(join(uri, CARD)), join(uri, CARD))
    except FileNotFoundError as error:
        raise ConfigurationError(f"init_from: {uri} holds no model (no {CARD}); name a model's folder") from error
    _require_kind(uri, card, kind)
    found = network_settings(card) if whole else {name: card.network.get(name) for name in network}
    _require_equal(uri, [*_leaves(found, network), *_leaves(card.schedule or {}, schedule or {}, "schedule.")])


def require_same(
    uri: str, kind: str, network: Mapping[str, Any], prepared: Path, schedule: Mapping[str, Any] | None = None
) -> None:
    """Raise ConfigurationError, naming both values, unless the model at `uri` is like the one to be trained.

    `network` is the plain configuration of the latter, `prepared` the folder with its data. Of an energy, the digest of
    the denoiser that it was made for may differ: it is trained for the one at hand.
    """
    try:
        card = open_folder(local_copy(uri))
    except ValueError as error:
        raise ConfigurationError(f"init_from: {error}") from error
    _require_kind(uri, card, kind)
    summary = read_summary(prepared)
    pairs = [
        *_leaves(network_settings(card), network),
        ("vocabulary", card.vocabulary, summary.vocabulary),
        ("tokenizer digest", card.tokenizer_digest, summary.tokenizer),
        *_leaves(card.schedule or {}, schedule or {}, "schedule."),
    ]
    _require_equal(uri, pairs)


def _require_kind(uri: str, card: ModelCard, kind: str) -> None:
    if card.kind != kind:
        raise ConfigurationError(f"init_from: {uri} holds a model of kind {card.kind!r}, and {kind!r} is trained here")


def _require_equal(uri: str, pairs: Iterable[tuple[str, Any, Any]]) -> None:
    unequal = [f"{name} is {found!r} there and {here!r} here" for name, found, here in pairs if found != here]
    if unequal:
        raise ConfigurationError(
            f"init_from: the model in {uri} is another one: {'; '.join(unequal)}; "
            "set what it has, name another model, or remove init_from to start from fresh weights"
        )


def load_initial(module: nn.Module, uri: str | None, kept: str | None = None) -> None:
    """Load the weights of the model at `uri`, if any, except those whose names begin with `kept`.

    Raise ConfigurationError if they do not fit, such as an energy's that was made for a denoiser of another width.
    """
    if uri is None:
        return
    weights = load_weights(local_copy(uri))
    try:
        load_into(module, weights, kept)
    except ValueError as error:
        raise ConfigurationError(f"init_from: {uri}: {error}") from error


def _leaves(found: Any, here: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every value of two trees with its dotted path; None where one tree lacks it."""
    if isinstance(found, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*here, *found]):
            if name != "denoiser_digest":
                yield from _leaves(found.get(name), here.get(name), f"{path}{name}.")
    else:
        yield path.removesuffix("."), found, here
