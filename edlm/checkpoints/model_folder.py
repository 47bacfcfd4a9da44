"""Model folder: a card, weights in safetensors and the tokenizer, with the digest of each file. No pickle."""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import pydantic
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from edlm.checkpoints.weight_files import (
    INDEX,
    WEIGHTS,
    check_header,
    listed,
    not_finite,
    read_index,
    read_weights,
    write_weights,
)
from edlm.config import ConfigurationError, Positive, config, dump, load, parse, plain
from edlm.storage import File, Sha256, digest_of, inventory, read_text, verify, write_text

CARD = "model.yaml"
TOKENIZER = "tokenizer.json"
CHECKSUMS = "checksums.json"


@config
class ModelCard:
    """Description of a model, enough to build the network from its folder without the experiment's file."""

    kind: Literal["denoiser", "autoregressive", "energy"]
    network: dict[str, pydantic.JsonValue]
    """The network's configuration, as `edlm.config.plain` gives it; `parse` restores it."""
    vocabulary: Positive
    """Number of tokens, without the mask."""
    length: Positive
    """Number of positions of the training canvas."""
    schedule: dict[str, pydantic.JsonValue] | None = None
    """The noise schedule's configuration; None for a model without noise."""
    tokenizer_digest: Sha256
    """SHA-256 of `tokenizer.json`."""
    trained: dict[str, pydantic.JsonValue] = pydantic.Field(default_factory=dict)
    """Provenance for people; no code reads it."""

    def require_tokenizer(self, digest: str, size: int) -> None:
        """Raise ValueError, with both sides, unless a tokenizer or model of this `digest` and `size` fits."""
        if size != self.vocabulary:
            raise ValueError(
                f"vocabulary mismatch: the model knows {self.vocabulary} tokens, the tokenizer has {size}; "
                "use the tokenizer.json of the model's own folder"
            )
        if digest != self.tokenizer_digest:
            raise ValueError(
                f"tokenizer mismatch: the model was trained with {self.tokenizer_digest}, got {digest}; "
                "use the tokenizer.json of the model's own folder"
            )


@config
class Checksums:
    """Content of `checksums.json`."""

    files: tuple[File, ...]


def save_model(
    folder: Path, card: ModelCard, weights: Mapping[str, Shaped[Tensor, "..."]], tokenizer_file: Path
) -> str:
    """Write a complete model to `folder` and return its digest, a function of card, weights and tokenizer alone.

    Of weights that are read when they are accessed (`StateSource`), one shard is in memory at a time. If killed before
    the end, or after an error in the weights, it leaves a folder that `open_folder` rejects. Raise ValueError for a
    weight that is not finite, and for a tokenizer that is not the card's.
    """
    tokenizer_digest = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    if tokenizer_digest != card.tokenizer_digest:
        raise ValueError(
            f"{tokenizer_file} has SHA-256 {tokenizer_digest}, the card says {card.tokenizer_digest}; give the "
            "tokenizer file that the model was trained with"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS).unlink(missing_ok=True)  # no valid model from here until the last write
    written = write_weights(folder, weights)
    write_text(str(folder / CARD), dump(card))
    if tokenizer_file.resolve() != (folder / TOKENIZER).resolve():
        shutil.copyfile(tokenizer_file, folder / TOKENIZER)
    files = tuple(file for file in inventory(folder) if file.path in (CARD, TOKENIZER, *written))
    write_text(str(folder / CHECKSUMS), json.dumps(plain(Checksums(files=files)), indent=1))
    return digest_of(files)


def digest(folder: Path) -> str:
    """Return the model's immutable name, the SHA-256 of its checksums; `open_folder` verifies the files."""
    return digest_of(_checksums(folder).files)


def open_folder(folder: Path) -> ModelCard:
    """Return the card of a model folder after verifying the size and digest of every file.

    Raise ValueError naming the file that is missing, foreign, truncated, altered, or not safetensors.
    """
    files = _checksums(folder).files
    named = {file.path for file in files}
    _require(folder, named, (CARD, TOKENIZER, INDEX if INDEX in named else WEIGHTS))
    weights = list(read_index(folder).files) if INDEX in named else [WEIGHTS]
    _require(folder, named, weights)
    for name in weights:
        check_header(folder / name)
    verify(folder, files, besides=(CHECKSUMS,))
    card = load(ModelCard, folder / CARD)
    (tokenizer,) = (file for file in files if file.path == TOKENIZER)
    if tokenizer.sha256 != card.tokenizer_digest:
        raise ValueError(
            f"{folder}: {TOKENIZER} has SHA-256 {tokenizer.sha256}, but {CARD} was written for "
            f"{card.tokenizer_digest}; restore the folder from a good copy"
        )
    return card


def load_weights(folder: Path) -> Mapping[str, Tensor]:
    """Return the weights of a model folder by name, on the CPU, after `open_folder` has verified it.

    They are mapped into memory, and read when they are accessed.
    """
    open_folder(folder)
    return read_weights(folder)


def load_into(module: nn.Module, weights: Mapping[str, Shaped[Tensor, "..."]], kept: str | None = None) -> None:
    """Load exactly `weights` into `module`, one after the other; on any error it is unchanged.

    Names that begin with `kept` are left as they are in the module, and passed over in `weights`. Raise ValueError
    naming the tensors that are missing, foreign, of another shape or dtype, or not finite.
    """
    current = {name: tensor for name, tensor in module.state_dict().items() if not _begins(name, kept)}
    names = [name for name in weights if not _begins(name, kept)]
    problems = [f"{name} is missing" for name in current if name not in weights]
    problems += [f"{name} is foreign to this network" for name in names if name not in current]
    problems += [found for name in names if name in current and (found := _problem(name, weights[name], current[name]))]
    if problems:
        raise ValueError(
            f"the weights do not fit {type(module).__name__}: {listed(problems)}; "
            "build the network from the card of the folder that the weights came from"
        )
    with torch.no_grad():
        for name in names:
            current[name].copy_(weights[name])  # the state shares the module's memory


def _begins(name: str, start: str | None) -> bool:
    return start is not None and name.startswith(start)


def _problem(name: str, tensor: Tensor, expected: Tensor) -> str | None:
    """Return why a tensor cannot be loaded in place of `expected`; None if it can."""
    if tensor.shape != expected.shape:
        return f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
    if tensor.dtype != expected.dtype:
        return f"{name} has dtype {_name(tensor.dtype)}, expected {_name(expected.dtype)}"
    return not_finite(name, tensor)


def _require(folder: Path, named: Collection[str], files: Iterable[str]) -> None:
    """Raise ValueError for a file of the model that is not there, or not named in the checksums."""
    for name in files:
        if name not in named or not (folder / name).is_file():
            raise ValueError(f"{folder}: the model's file {name!r} is missing; restore it from a good copy")


def _checksums(folder: Path) -> Checksums:
    path = folder / CHECKSUMS
    try:
        tree = json.loads(read_text(str(path)))
    except FileNotFoundError:
        raise ValueError(f"{folder} is no complete model folder (no {CHECKSUMS}); save or fetch it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); save or fetch the model again") from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path} is damaged (it holds no JSON object); save or fetch the model again")
    return parse(Checksums, tree, source=str(path))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
