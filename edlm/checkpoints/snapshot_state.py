"""A committed snapshot as a state from which any process reads its slices, however many saved it or load it."""

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from edlm.checkpoints.snapshot_manifest import Manifest, SnapshotPart
from edlm.checkpoints.state_slices import StateSlice, StateSource, whole
from edlm.checkpoints.tensor_files import DTYPES, FileRange, read_ranges
from edlm.file_systems import file_system, reading
from edlm.storage import StorageError, join, read_text


class SnapshotState(StateSource):
    """The state in the snapshot `uri`, read when it is accessed.

    Read are whole chunks around what is asked for, each once in a call of `fill`, and the digests of the parts that
    they lie in. What is read is verified, what is not read is not.
    """

    def __init__(self, uri: str, manifest: Manifest) -> None:
        self._uri, self._manifest = uri, manifest
        self._shapes = {tensor.name: torch.Size(tensor.shape) for tensor in manifest.tensors}
        self._dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in manifest.tensors}
        self._digests: dict[str, bytes] = {}
        self.bytes_read = 0
        """Bytes read so far, digests included."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        return self._shapes

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        return self._dtypes

    def fill(self, slices: Iterable[StateSlice]) -> None:
        for part, ranges in self.plan(slices).items():
            self._read(self._manifest.parts[part], ranges)

    def plan(self, slices: Iterable[StateSlice]) -> dict[int, list[FileRange]]:
        """Return where the slices lie, by part: the bytes of its file, and what they fill."""
        ranges: dict[int, list[FileRange]] = defaultdict(list)
        for one in slices:
            if one.values.dtype != self._dtypes[one.name]:
                raise StorageError(f"{self._uri}: {one.name} is {self._dtypes[one.name]}, expected {one.values.dtype}")
            for part, start, low, high in self._located(one):
                ranges[part].append(FileRange(start, one.values[low - one.offset : high - one.offset]))
        return ranges

    def verify(self) -> None:
        """Read everything, a tensor at a time. Raise StorageError for the first bytes that are not what was saved."""
        for name in self:
            self[name]

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.empty(self.shapes[name], dtype=self._dtypes[name])
        self.fill([whole(name, tensor)])
        return tensor

    def _located(self, one: StateSlice) -> Iterator[tuple[int, int, int, int]]:
        """Yield (part, byte in its file, first element, end) of the saved runs that overlap a slice."""
        runs, size = self._runs[one.name], self._dtypes[one.name].itemsize
        first = max(0, bisect_right(runs, one.offset, key=lambda run: run[0]) - 1)
        for offset, count, part, start in runs[first:]:
            low, high = max(offset, one.offset), min(offset + count, one.stop)
            if offset >= one.stop:
                break
            if low < high:
                yield part, start + (low - offset) * size, low, high

    @cached_property
    def _runs(self) -> Mapping[str, list[tuple[int, int, int, int]]]:
        """(offset, count, part, byte in the part's file) of the saved runs of each tensor, in order."""
        tensors = self._manifest.tensors
        sizes = [DTYPES[tensor.dtype].itemsize for tensor in tensors]
        runs: list[list[tuple[int, int, int, int]]] = [[] for _ in tensors]
        for i, part in enumerate(self._manifest.parts):
            position = part.start
            for index, offset, count in part.slices:
                runs[index].append((offset, count, i, position))
                position += count * sizes[index]
        return {tensor.name: sorted(held) for tensor, held in zip(tensors, runs, strict=True)}

    def _read(self, part: SnapshotPart, ranges: list[FileRange]) -> None:
        system, path = file_system(join(self._uri, part.tensor_file))
        self.bytes_read += read_ranges(system, path, part.bytes, self._digests_of(part), ranges)

    def _digests_of(self, part: SnapshotPart) -> bytes:
        if part.name not in self._digests:
            uri = join(self._uri, part.digest_file)
            try:
                with reading(*file_system(uri)):
                    text = read_text(uri)
            except FileNotFoundError as error:
                raise StorageError(f"{uri} is missing") from error
            except UnicodeDecodeError as error:
                raise StorageError(f"{uri} is damaged ({error})") from error
            if hashlib.sha256(text.encode()).hexdigest() != part.digests:
                raise StorageError(f"{uri} does not have the SHA-256 {part.digests} that the manifest states")
            self.bytes_read += len(text)
            self._digests[part.name] = bytes.fromhex(text)
        return self._digests[part.name]
