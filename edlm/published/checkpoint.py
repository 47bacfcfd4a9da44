"""Published checkpoints in safetensors: a file, or a repository's folder with its config.json; strict about names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edlm.published.layout import LayoutError

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
ROOTS = ("vocab_embed", "sigma_map", "rotary_emb", "blocks", "output_layer", "vocab_proj", "energy_head")
PREFIX = re.compile(rf"((?:\w+\.)*?)(?:{'|'.join(ROOTS)})\.")
MODEL_TYPES = ("mdlm", "bd3lm")


@dataclass(frozen=True)
class Facts:
    """What tensors do not say, as far as config.json says it; None where it does not."""

    heads: int | None = None
    length: int | None = None
    time_conditioning: bool | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one network by their published names, and what its config.json says."""

    tensors: dict[str, Tensor]
    facts: Facts


def open_checkpoint(source: Path, prefix: str | None = None) -> Checkpoint:
    """Open a safetensors file, or the folder of a repository.

    `prefix` chooses one of several networks in it, such as `backbone.`; a single prefix need not be given. Raise
    LayoutError, with the way out, for anything else, and for a network of another family.
    """
    tensors = _without_prefix(_tensors(source), prefix, source)
    folder = source if source.is_dir() else source.parent
    return Checkpoint(tensors, facts_of(_config(folder / CONFIG), str(folder / CONFIG)))


def facts_of(settings: Mapping[str, Any], named: str) -> Facts:
    """Return the facts in a config.json: flat (MDLM's repositories) or nested (SEDD's, and training settings).

    Raise LayoutError for a network that is no masked denoiser of one block, or whose noise is not log-linear.
    """
    model = settings.get("model")
    nested: Mapping[str, Any] = model if isinstance(model, Mapping) else {}
    length = settings.get("model_length", nested.get("length"))
    kind, graph, noise = settings.get("model_type"), settings.get("graph"), settings.get("noise")
    if kind is not None and kind not in MODEL_TYPES:
        raise LayoutError(f"{named}: model_type is {kind!r}, no masked denoiser; known are {', '.join(MODEL_TYPES)}")
    if kind == "bd3lm" and settings.get("block_size") != length:
        raise LayoutError(
            f"{named}: block_size is {settings.get('block_size')} and model_length {length}: its blocks are denoised "
            "one after another, each given those before it, and a denoiser here fills one canvas; only a checkpoint "
            "of a single block is one"
        )
    if isinstance(graph, Mapping) and graph.get("type") != "absorb":
        raise LayoutError(f"{named}: graph.type is {graph.get('type')!r}; only 'absorb' has masks")
    if isinstance(noise, Mapping) and noise.get("type") not in (None, "loglinear"):
        raise LayoutError(f"{named}: noise.type is {noise.get('type')!r}; the networks here read log-linear noise")
    time_conditioning = settings.get("time_conditioning", True if graph is not None else None)  # SEDD always reads it
    return Facts(settings.get("n_heads", nested.get("n_heads")), length, time_conditioning)


def _tensors(source: Path) -> dict[str, Tensor]:
    if not source.exists():
        raise LayoutError(f"{source} is not there; name a safetensors file, or a folder with {WEIGHTS}")
    if source.is_dir() and (source / INDEX).is_file():
        names = json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"]
        tensors = {name: tensor for file in sorted({*names.values()}) for name, tensor in _load(source / file).items()}
        if odd := sorted(names.keys() ^ tensors.keys()):
            raise LayoutError(f"{source / INDEX} and its files disagree about {', '.join(odd[:8])}")
        return tensors
    return _load(source / WEIGHTS if source.is_dir() else source)


def _load(path: Path) -> dict[str, Tensor]:
    pickles = sorted(other.name for other in path.parent.glob("*") if other.suffix in PICKLES)
    if path.suffix in PICKLES or (not path.is_file() and pickles):
        name = path if path.suffix in PICKLES else path.parent / pickles[0]
        raise LayoutError(
            f"{name} is a pickle, which is not read; write its weights as safetensors with python -m "
            f"workflows.convert {name} {name.with_suffix('.safetensors')}"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise LayoutError(f"{path} is no whole safetensors file ({error}); get it again") from error


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str | None, source: Path) -> dict[str, Tensor]:
    """Return the tensors of one network without what its training program puts before their names."""
    prefixes = sorted({found[1] for name in tensors if (found := PREFIX.match(name))})
    if prefix is None and len(prefixes) > 1:
        raise LayoutError(
            f"{source} holds several networks, whose names begin with {' and '.join(map(repr, prefixes))}; "
            "choose one with --prefix"
        )
    if prefix is not None and prefix not in prefixes:
        raise LayoutError(f"{source} holds no names that begin with {prefix!r}; there are: {prefixes}")
    chosen = prefix if prefix is not None else "".join(prefixes)
    if prefix is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if (m := PREFIX.match(name)) and m[1] == prefix}
    return {name.removeprefix(chosen): tensor for name, tensor in tensors.items()}


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LayoutError(f"{path} is no JSON ({error}); get it again, or remove it and give the settings") from error
    if not isinstance(settings, dict):
        raise LayoutError(f"{path} holds no JSON object; get it again, or remove it and give the settings")
    return settings
