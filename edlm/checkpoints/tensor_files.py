"""Safetensors files written as a stream and read by ranges, every byte verified by the digest of its chunk.

safetensors' own `save_file` writes to a local disk, and its reader needs a whole local file. Here a file is written to
any store from the tensors' own memory, hashed on the way, and a reader of some tensors reads and verifies the chunks
they lie in and no others.
"""

import bisect
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from edlm.file_systems import reading
from edlm.storage import StorageError

CHUNK = 2**16
"""Bytes that one digest covers. A smaller one makes more digests (32 bytes each), a larger one reads more besides."""
PIECE = 2**24
"""Most bytes of one ranged read: a multiple of `CHUNK`."""
BATCH = 4
"""Ranged reads of a store at once; with `PIECE`, a bound on the memory that reading takes."""
DIGEST = hashlib.sha256().digest_size

DTYPES = {
    "F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "I32": torch.int32, "BF16": torch.bfloat16,
    "F16": torch.float16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What a state can hold, by the names that safetensors gives them."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file from `start`, as many as the one-dimensional, contiguous `target` has."""

    start: int
    target: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.target.nbytes


def header_of(tensors: Sequence[tuple[str, Tensor]]) -> bytes:
    """Return the header of a safetensors file that holds these flat tensors one after the other."""
    entries, position = {}, 0
    for name, tensor in tensors:
        stop = position + tensor.nbytes
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": [tensor.numel()], "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors
    return len(text).to_bytes(8, "little") + text


def write_safetensors(system: AbstractFileSystem, path: str, tensors: Sequence[tuple[str, Tensor]]) -> bytes:
    """Write flat CPU tensors to `path` and return the SHA-256 of each chunk, joined; on a local disk, synced.

    Nothing is copied: the memory is that of the tensors and, for a store, of one part of an upload.
    """
    digests = _ChunkDigests()
    with _writable(system, path) as file:
        for block in (memoryview(header_of(tensors)), *(_bytes_of(tensor) for _, tensor in tensors)):
            for start in range(0, len(block), PIECE):
                file.write(block[start : start + PIECE])
                digests.update(block[start : start + PIECE])
        if isinstance(system, LocalFileSystem):
            file.flush()
            os.fsync(file.fileno())  # before a manifest names it: after a power cut both would be gone
    return digests.finish()


def read_ranges(system: AbstractFileSystem, path: str, size: int, digests: bytes, ranges: Iterable[FileRange]) -> int:
    """Fill the targets of `ranges` from a file of `size` bytes, and return how many bytes were read.

    Whole chunks are read, each once, and verified before any of their bytes is used. Raise StorageError if the file is
    missing or shorter, or a chunk differs from its digest.
    """
    ordered = sorted(ranges, key=lambda one: one.start)
    starts, read = [one.start for one in ordered], 0
    pieces = list(_pieces(ordered, size))
    for i in range(0, len(pieces), BATCH):
        batch = pieces[i : i + BATCH]
        for (start, stop), content in zip(batch, _read(system, path, batch), strict=True):
            _verify(path, start, stop, content, digests)
            read += len(content)
            first = max(0, bisect.bisect_right(starts, start) - 1)
            for one in ordered[first : bisect.bisect_left(starts, stop)]:
                _copy(one, start, content)
    return read


def _pieces(ordered: Sequence[FileRange], size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the reads: whole chunks, adjacent ones together, up to `PIECE` bytes."""
    position = 0  # up to where everything that is needed has been yielded
    run: tuple[int, int] | None = None
    for one in ordered:
        start = max(position, one.start // CHUNK * CHUNK)
        stop = min(size, -(-one.stop // CHUNK) * CHUNK)
        if start >= stop:
            continue
        position = stop
        if run is not None and start == run[1]:
            run = run[0], stop
        else:
            yield from _cut(run)
            run = start, stop
    yield from _cut(run)


def _cut(run: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
    if run is not None:
        for start in range(run[0], run[1], PIECE):
            yield start, min(run[1], start + PIECE)


def _read(system: AbstractFileSystem, path: str, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
    starts, stops = [start for start, _ in pieces], [stop for _, stop in pieces]
    try:
        with reading(system, path):
            return system.cat_ranges([path] * len(pieces), starts, stops, on_error="raise")
    except FileNotFoundError as error:
        raise StorageError(f"{path} is missing") from error


def _verify(path: str, start: int, stop: int, content: bytes, digests: bytes) -> None:
    if len(content) != stop - start:
        raise StorageError(f"{path} ends after {start + len(content)} bytes, expected {stop} or more")
    view = memoryview(content)
    for offset in range(0, len(view), CHUNK):
        i = (start + offset) // CHUNK
        expected = digests[i * DIGEST : (i + 1) * DIGEST]
        if hashlib.sha256(view[offset : offset + CHUNK]).digest() != expected:
            last = min(stop, start + offset + CHUNK)
            raise StorageError(f"{path}: bytes {start + offset} to {last} do not have the SHA-256 {expected.hex()}")


def _copy(one: FileRange, start: int, content: bytes) -> None:
    """Copy what a read from `start` holds of one range."""
    low, high = max(one.start, start), min(one.stop, start + len(content))
    if low < high:
        size = one.target.element_size()
        values = torch.frombuffer(bytearray(content[low - start : high - start]), dtype=one.target.dtype)
        one.target[(low - one.start) // size : (high - one.start) // size].copy_(values)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


def _writable(system: AbstractFileSystem, path: str) -> Any:
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    return open(path, "wb") if isinstance(system, LocalFileSystem) else system.open(path, "wb")


class _ChunkDigests:
    """SHA-256 of each `CHUNK` bytes of a stream; the last chunk may be shorter."""

    def __init__(self) -> None:
        self._digests, self._open, self._filled = bytearray(), hashlib.sha256(), 0

    def update(self, block: memoryview) -> None:
        start = 0
        while start < len(block):
            taken = block[start : start + CHUNK - self._filled]
            self._open.update(taken)
            start, self._filled = start + len(taken), self._filled + len(taken)
            if self._filled == CHUNK:
                self._close()

    def finish(self) -> bytes:
        if self._filled:
            self._close()
        return bytes(self._digests)

    def _close(self) -> None:
        self._digests += self._open.digest()
        self._open, self._filled = hashlib.sha256(), 0
