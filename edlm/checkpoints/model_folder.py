"""Model folder: a card, weights in safetensors and the tokenizer, with the digest of each file. No pickle."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edlm.config import ConfigurationError, Positive, config, dump, load, parse, plain
from edlm.storage import File, Sha256, digest_of, inventory, read_text, verify, write_text

CARD = "model.yaml"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
CHECKSUMS = "checksums.json"
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
NAMED = 8  # most wrong tensors that an error lists before it counts the rest


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

    If killed before the end, it leaves a folder that `open_folder` rejects. Raise ValueError for a weight that is not
    finite, and for a tokenizer that is not the card's.
    """
    problems = [problem for name, tensor in weights.items() if (problem := _not_finite(name, tensor))]
    if problems:
        raise ValueError(
            f"a model with weights that are not finite is not saved: {_listed(problems)}; train it with a lower "
            "learning_rate, or with clip"
        )
    tokenizer_digest = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    if tokenizer_digest != card.tokenizer_digest:
        raise ValueError(
            f"{tokenizer_file} has SHA-256 {tokenizer_digest}, the card says {card.tokenizer_digest}; give the "
            "tokenizer file that the model was trained with"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS).unlink(missing_ok=True)  # no valid model from here until the last write
    # Clone each tensor: safetensors rejects tensors that share memory, as tied weights do.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    save_file(copies, folder / WEIGHTS)
    write_text(str(folder / CARD), dump(card))
    if tokenizer_file.resolve() != (folder / TOKENIZER).resolve():
        shutil.copyfile(tokenizer_file, folder / TOKENIZER)
    files = tuple(file for file in inventory(folder) if file.path in (CARD, WEIGHTS, TOKENIZER))
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
    for name in (CARD, WEIGHTS, TOKENIZER):
        if name not in named or not (folder / name).is_file():
            raise ValueError(f"{folder}: the model's file {name!r} is missing; restore it from a good copy")
    _check_header(folder / WEIGHTS)
    verify(folder, files, besides=(CHECKSUMS,))
    card = load(ModelCard, folder / CARD)
    (tokenizer,) = (file for file in files if file.path == TOKENIZER)
    if tokenizer.sha256 != card.tokenizer_digest:
        raise ValueError(
            f"{folder}: {TOKENIZER} has SHA-256 {tokenizer.sha256}, but {CARD} was written for "
            f"{card.tokenizer_digest}; restore the folder from a good copy"
        )
    return card


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a model folder by name, on the CPU, after `open_folder` has verified it."""
    open_folder(folder)
    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is no valid safetensors file ({error}); restore a good copy") from error


def load_into(module: nn.Module, weights: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Load exactly `weights` into `module`; on any error it is unchanged.

    Raise ValueError naming the tensors that are missing, foreign, of another shape or dtype, or not finite.
    """
    current = module.state_dict()
    problems = [f"{name} is missing" for name in current if name not in weights]
    problems += [f"{name} is foreign to this network" for name in weights if name not in current]
    for name, tensor in weights.items():
        expected = current.get(name)
        if expected is None:
            continue
        if tensor.shape != expected.shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}")
        elif tensor.dtype != expected.dtype:
            problems.append(f"{name} has dtype {_name(tensor.dtype)}, expected {_name(expected.dtype)}")
        elif problem := _not_finite(name, tensor):
            problems.append(problem)
    if problems:
        raise ValueError(
            f"the weights do not fit {type(module).__name__}: {_listed(problems)}; "
            "build the network from the card of the folder that the weights came from"
        )
    module.load_state_dict(dict(weights), strict=True)


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


def _check_header(path: Path) -> None:
    """Raise ValueError unless the first nine bytes are those of a safetensors file.

    This happens before any byte of the file is hashed, mapped or executed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or not 2 <= length <= min(size - 8, LARGEST_HEADER):
        raise ValueError(
            f"{path} is no safetensors file, or is truncated: {size} bytes, the first {start.hex(' ') or 'missing'}; "
            "pickles and other formats are not read; restore a good copy"
        )


def _not_finite(name: str, tensor: Shaped[Tensor, "..."]) -> str | None:
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    return f"{name} has {int((~torch.isfinite(tensor)).sum())} values of {tensor.numel()} that are not finite"


def _listed(problems: list[str]) -> str:
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return "; ".join(problems[:NAMED]) + more


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
