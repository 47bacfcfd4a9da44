"""Published bundles that are whole and well-named, and whose model is no good: what a promotion must refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edlm.checkpoints.model_folder import CHECKSUMS, TOKENIZER, Checksums
from edlm.checkpoints.networks import save_denoiser
from edlm.checkpoints.weight_files import WEIGHTS
from edlm.config import plain
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Bytes, Characters
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from edlm.storage import inventory, publish
from tests.bundles import LENGTH
from tests.networks import TRANSFORMER, denoiser, stirred

NAME = "tiny"


def plain_bundle(folder: Path, seed: int) -> Path:
    """Save a valid bundle without energies to `folder`/bundle, unpublished; the seed determines the weights."""
    tokenizer = Characters().build([])
    folder.mkdir(parents=True)
    tokenizer.save(folder)
    weights = stirred(denoiser(tokenizer.size), seed).state_dict()
    save_denoiser(folder / "denoiser", weights, TRANSFORMER, LogLinear(), LENGTH, folder / FILE, {})
    bundle = Bundle(name=NAME, energy=None, sampler=Sampler(steps=4, candidates=1))
    save_bundle(folder / "bundle", bundle, folder / "denoiser", {})
    return folder / "bundle"


def published(bundle: Path) -> str:
    """Commit the bundle whatever it holds, and return its digest."""
    return publish(bundle, str(bundle)).digest


def with_weights(bundle: Path, change: Callable[[Tensor], Tensor]) -> Path:
    """Change the largest tensor of the bundle's denoiser, with valid checksums."""
    file = bundle / "denoiser" / WEIGHTS
    weights = load_file(file)
    largest = max(weights, key=lambda name: weights[name].numel())
    save_file({**weights, largest: change(weights[largest]).contiguous()}, file)
    return _agreeing(bundle)


def with_other_tokenizer(bundle: Path) -> Path:
    """Replace the tokenizer of the bundle's denoiser by another one, with valid checksums."""
    Bytes().build([]).save(bundle / "denoiser")
    assert (bundle / "denoiser" / TOKENIZER).is_file()
    return _agreeing(bundle)


def not_a_number(tensor: Tensor) -> Tensor:
    return torch.where(torch.arange(tensor.numel()).view(tensor.shape) == 3, torch.nan, tensor)


def _agreeing(bundle: Path) -> Path:
    folder = bundle / "denoiser"
    (folder / CHECKSUMS).unlink()
    (folder / CHECKSUMS).write_text(json.dumps(plain(Checksums(files=inventory(folder)))))
    return bundle
