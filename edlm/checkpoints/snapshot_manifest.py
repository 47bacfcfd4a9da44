"""Manifest of a snapshot: which file holds which elements of the training state, written last.

A snapshot is a folder `step-STEP-ATTEMPT`. Each rank writes a part there: `part-RANK.safetensors` with its slices,
`part-RANK.sha256` with the digests of the file's chunks, then `part-RANK.json`, which says what it holds. When all are
there, rank 0 writes `manifest.json`; a folder without one is not committed.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import pydantic

from edlm.checkpoints.tensor_files import DTYPES
from edlm.config import NonNegative, Positive, config, parse, plain
from edlm.file_systems import file_system, reading
from edlm.storage import Sha256, StorageError, join, read_text, write_text

FORMAT = 2  # 1: a gathered state in one file (`edlm.checkpoints.training_state`)
MANIFEST = "manifest.json"

PartName = Annotated[str, pydantic.Field(pattern=r"^part-\d{5,}$")]


@config
class SavedTensor:
    """One tensor of the state, whole."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[NonNegative, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} of {self.name} is not one of {', '.join(DTYPES)}")


@config
class SnapshotPart:
    """What one rank wrote."""

    name: PartName
    bytes: NonNegative
    """Size of its safetensors file."""
    start: NonNegative
    """Bytes of that file before its first slice; the slices follow one another."""
    digests: Sha256
    """SHA-256 of its file of digests."""
    slices: tuple[tuple[NonNegative, NonNegative, Positive], ...]
    """(index into the tensors, offset, number of elements) of each, in the order of the file."""

    @property
    def tensor_file(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def digest_file(self) -> str:
        return f"{self.name}.sha256"


@config
class PartRecord:
    """Content of `part-RANK.json`: a part, with the tensors that its slices are of."""

    tensors: tuple[SavedTensor, ...]
    part: SnapshotPart


@config
class Manifest:
    """Content of `manifest.json`."""

    format: Positive = FORMAT
    step: NonNegative
    attempt: str
    """Name of the launch of the workers that saved it."""
    world_size: Positive
    tensors: tuple[SavedTensor, ...]
    parts: tuple[SnapshotPart, ...]
    facts: dict[str, pydantic.JsonValue] = pydantic.Field(default_factory=dict)


def part_name(rank: int) -> str:
    return f"part-{rank:05d}"


def merged(records: Sequence[PartRecord]) -> tuple[tuple[SavedTensor, ...], tuple[SnapshotPart, ...]]:
    """Return the tensors of all parts, each once, and the parts, which refer to them.

    Raise StorageError unless the parts hold every element of every tensor exactly once.
    """
    tensors: dict[str, SavedTensor] = {}
    for record in records:
        for tensor in record.tensors:
            if tensors.setdefault(tensor.name, tensor) != tensor:
                raise StorageError(f"ranks do not agree on the shape of {tensor.name}")
    indices = {name: i for i, name in enumerate(tensors)}
    parts = []
    for record in records:
        index = [indices[tensor.name] for tensor in record.tensors]
        slices = tuple((index[i], offset, count) for i, offset, count in record.part.slices)
        parts.append(replace(record.part, slices=slices))
    require_whole(list(tensors.values()), parts)
    return tuple(tensors.values()), tuple(parts)


def require_whole(tensors: Sequence[SavedTensor], parts: Sequence[SnapshotPart]) -> None:
    """Raise StorageError unless the slices of the parts are every element of every tensor once."""
    held: list[list[tuple[int, int]]] = [[] for _ in tensors]
    for part in parts:
        for index, offset, count in part.slices:
            if index >= len(tensors):
                raise StorageError(f"{part.name} has a slice of a tensor that the manifest does not list")
            held[index].append((offset, count))
    for tensor, runs in zip(tensors, held, strict=True):
        position = 0
        for offset, count in sorted(runs):
            if offset != position:
                break
            position += count
        if position != math.prod(tensor.shape):
            raise StorageError(f"its parts do not hold each element of {tensor.name} exactly once")


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Commit the snapshot in the folder `uri`."""
    tree = plain(manifest)
    write_text(join(uri, MANIFEST), json.dumps({"sha256": _digest(tree), "manifest": tree}, allow_nan=False))


def read_manifest(uri: str) -> Manifest | None:
    """Return the manifest of the snapshot `uri`, or None if it has none.

    Raise StorageError if it is damaged, or of a format that this version does not know.
    """
    try:
        with reading(*file_system(join(uri, MANIFEST))):
            text = read_text(join(uri, MANIFEST))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise StorageError(f"{MANIFEST} is damaged ({error})") from error
    try:
        tree = json.loads(text)
        content = tree["manifest"]
        found, version = tree["sha256"], content["format"]
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}" if text else "it is empty"
        raise StorageError(f"{MANIFEST} is damaged ({problem})") from error
    if version != FORMAT:
        raise StorageError(
            f"{MANIFEST} has format {version}, and this version of edlm reads up to {FORMAT}: a newer one wrote it"
        )
    if found != _digest(content):
        raise StorageError(f"{MANIFEST} is damaged (its SHA-256 is not the one it states)")
    manifest = parse(Manifest, content, source=join(uri, MANIFEST))
    require_whole(manifest.tensors, manifest.parts)
    return manifest


def require_parts(uri: str, parts: Sequence[SnapshotPart]) -> None:
    """Raise StorageError unless every file of the parts is there, and those with tensors have their sizes.

    One listing, no content: digests are verified by those who read.
    """
    sizes = listed(uri)
    for part in parts:
        for name in (part.tensor_file, part.digest_file):
            if name not in sizes:
                raise StorageError(f"{name} is missing")
        if sizes[part.tensor_file] != part.bytes:
            raise StorageError(f"{part.tensor_file} has {sizes[part.tensor_file]} bytes, expected {part.bytes}")


def listed(uri: str) -> dict[str, int]:
    """Return the sizes in bytes of the files directly in a folder, by name; empty if there is no folder."""
    system, root = file_system(uri)
    system.invalidate_cache()  # a store's client remembers listings; other ranks write here
    try:
        with reading(system, root):
            entries = system.ls(root, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}


def _digest(tree: object) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
