"""Weights of a model folder: one safetensors file or, of a large network, shards with an index as Hugging Face's.

Both ways a shard at a time: neither writing nor reading takes the memory of all weights.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import pydantic
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edlm.checkpoints.state_slices import StateSource, source_of, whole
from edlm.config import NonNegative, config, parse
from edlm.storage import read_text, write_text

WEIGHTS = "weights.safetensors"
INDEX = "weights.safetensors.index.json"
SHARD = "weights{suffix}.safetensors"
SHARD_BYTES = 2 * 10**9
"""Most bytes of tensors in a file, unless a single one has more: the memory that writing weights takes, whatever their
number. Little beside what a process has that starts a training, and few files: 14 of 7e9 parameters in float32."""
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
NAMED = 8  # most wrong tensors that an error lists before it counts the rest

ShardName = Annotated[str, pydantic.Field(pattern=r"^weights-\d{5,}-of-\d{5,}\.safetensors$")]


@config
class ShardTotal:
    """What the index says of all shards together."""

    total_size: NonNegative
    """Bytes of all tensors."""


@config
class ShardIndex:
    """Content of `weights.safetensors.index.json`, in the format of transformers."""

    metadata: ShardTotal
    weight_map: dict[str, ShardName]
    """File of each tensor."""

    @property
    def files(self) -> dict[str, list[str]]:
        """Names of the tensors in each file, sorted."""
        files: dict[str, list[str]] = {file: [] for file in sorted(set(self.weight_map.values()))}
        for name in sorted(self.weight_map):
            files[self.weight_map[name]].append(name)
        return files


class SavedWeights(Mapping[str, Tensor]):
    """Weights in files, mapped into memory; each access returns its tensor anew, on the CPU."""

    def __init__(self, folder: Path, files: Collection[str]) -> None:
        """Raise ValueError for a file that is missing or not valid."""
        self._file_of: dict[str, safe_open] = {}
        for path in files:
            file = _opened(folder / path)
            self._file_of |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Write the weights in place of others in `folder`, and return the names of the files.

    Up to `SHARD_BYTES` it is the file `WEIGHTS`, beyond that shards and `INDEX`; which tensor is where depends on the
    names and shapes alone. In memory is one shard at a time, besides what `weights` hold: of a `StateSource`, nothing.
    Raise ValueError for weights that are not finite; what was written until then stays.
    """
    source = source_of(weights)
    shapes, dtypes = source.shapes, source.dtypes
    sizes = {name: shapes[name].numel() * dtypes[name].itemsize for name in sorted(source)}
    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=lambda size: size, filename_pattern=SHARD, max_shard_size=SHARD_BYTES
    )
    for old in (folder / INDEX, *folder.glob(SHARD.format(suffix="*"))):
        old.unlink(missing_ok=True)
    files = split.filename_to_tensors or {WEIGHTS: []}
    write_files(folder, source, files)
    if not split.is_sharded:
        return tuple(files)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    write_text(str(folder / INDEX), json.dumps(index, indent=2, sort_keys=True) + "\n")
    return (*files, INDEX)


def write_files(folder: Path, weights: Mapping[str, Tensor], files: Mapping[str, Collection[str]]) -> None:
    """Write the tensors that are named for each file, one file after the other.

    Raise ValueError, naming the tensors, if some are named for no file or not there, or if some are not finite.
    """
    source, problems = source_of(weights), list[str]()
    if other := set(source).symmetric_difference(name for names in files.values() for name in names):
        raise ValueError(f"{INDEX} and the weights are not of one model: {listed(sorted(other))} in one of them only")
    for file, names in files.items():
        problems += _write_file(None if problems else folder / file, source, names)
    if problems:
        raise ValueError(
            f"a model with weights that are not finite is not saved: {listed(problems)}; train it with a lower "
            "learning_rate, or with clip"
        )


def read_index(folder: Path) -> ShardIndex:
    """Return the index of a folder with shards. Raise ValueError if it is damaged."""
    path = folder / INDEX
    try:
        tree = json.loads(read_text(str(path)))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore a good copy") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object); restore a good copy")
    return parse(ShardIndex, tree, source=str(path))


def read_weights(folder: Path) -> SavedWeights:
    """Return the weights in `folder`. Raise ValueError if a file is missing, or not what the index says."""
    if not (folder / INDEX).is_file():
        return SavedWeights(folder, [WEIGHTS])
    files = read_index(folder).files
    for file, names in files.items():
        held = set(_opened(folder / file).keys())
        problems = [f"{name} is missing" for name in names if name not in held]
        problems += [f"{name} is not named for it" for name in sorted(held.difference(names))]
        if problems:
            raise ValueError(f"{folder / file} is not what {INDEX} says: {listed(problems)}; restore a good copy")
    return SavedWeights(folder, files)


def check_header(path: Path) -> None:
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


def not_finite(name: str, tensor: Tensor) -> str | None:
    """Return what an error says of a tensor that is not finite; None if it is."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    return f"{name} has {int((~torch.isfinite(tensor)).sum())} values of {tensor.numel()} that are not finite"


def listed(problems: list[str]) -> str:
    """Return the first problems, and how many more there are."""
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return "; ".join(problems[:NAMED]) + more


@torch.no_grad()
def _write_file(path: Path | None, source: StateSource, names: Collection[str]) -> list[str]:
    """Write these tensors to `path`, and return what is wrong with them; then, and without a path, nothing is written.

    A function of its own, so that a shard is gone before the next one is read.
    """
    # Its own memory: safetensors rejects tensors that share theirs, as tied weights do.
    shapes, dtypes = source.shapes, source.dtypes
    tensors = {name: torch.empty(shapes[name], dtype=dtypes[name]) for name in names}
    source.fill([whole(name, tensor) for name, tensor in tensors.items()])
    problems = [problem for name, tensor in tensors.items() if (problem := not_finite(name, tensor))]
    if path is not None and not problems:
        try:
            save_file(tensors, path)
        except SafetensorError as error:
            raise _as_os_error(error, path) from error
    return problems


def _as_os_error(error: SafetensorError, path: Path) -> Exception:
    """Return the error of the operating system, a full disk for instance, that safetensors wraps; else itself."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return error if found is None else OSError(int(found[1]), os.strerror(int(found[1])), str(path))


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is no valid safetensors file ({error}); restore a good copy") from error
