"""Token blocks: the parts of a token file that have a digest each, so that one can be fetched alone, and verified."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from fsspec import AbstractFileSystem
from jaxtyping import Int64, UInt, UInt8

from edlm.storage_errors import StorageError

BLOCK_BYTES = 1 << 16  # a request takes a store about as long as it takes to send this much
DIGEST_BYTES = 32  # SHA-256
FETCHED_AT_ONCE = 256  # rows: 16 MiB of blocks, unless rows are long


class BlockWriter:
    """Writer of a token file that computes the digests of its blocks; the last block may be shorter."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._rest, self._digests = file, bytearray(), bytearray()

    def write(self, raw: memoryview) -> None:
        """Append bytes."""
        self._rest += raw
        whole = len(self._rest) - len(self._rest) % BLOCK_BYTES
        if whole:
            self._flush(whole)

    def finish(self) -> bytes:
        """Write what remains, and return the SHA-256 of every block, one after another."""
        self._flush(len(self._rest))
        return bytes(self._digests)

    def _flush(self, size: int) -> None:
        with memoryview(self._rest)[:size] as content:
            self._file.write(content)
            for start in range(0, size, BLOCK_BYTES):
                self._digests += hashlib.sha256(content[start : start + BLOCK_BYTES]).digest()
        del self._rest[:size]


@dataclass(frozen=True)
class StoredTokens:
    """Tokens of a file in a store. Nothing is kept of what is read."""

    uri: str
    """Of the token file."""
    system: AbstractFileSystem
    path: str
    """Of the token file in this file system."""
    count: int
    """Tokens of the file."""
    number: np.dtype
    """Storage format of a token."""
    digests: UInt8[np.ndarray, "blocks digest"]

    def at(self, indices: Int64[np.ndarray, "b l"]) -> UInt[np.ndarray, "b l"]:
        """Return the tokens at these indices, for which every block that holds one is fetched and verified.

        Raises StorageError naming the bytes of the file that are missing or damaged, and what the store's client raises
        when it has tried as often as it does.
        """
        groups = range(0, len(indices), FETCHED_AT_ONCE)
        parts = [self._gathered(indices[start : start + FETCHED_AT_ONCE]) for start in groups]
        return np.concatenate([np.zeros((0, indices.shape[1]), self.number), *parts])

    def _gathered(self, indices: Int64[np.ndarray, "b l"]) -> UInt[np.ndarray, "b l"]:
        per_block = BLOCK_BYTES // self.number.itemsize
        blocks, block_of = np.unique(indices // per_block, return_inverse=True)
        tokens = np.frombuffer(b"".join(self._fetched(blocks.tolist())), dtype=self.number)
        return tokens[block_of.reshape(indices.shape) * per_block + indices % per_block]

    def _fetched(self, blocks: Sequence[int]) -> list[bytes]:
        """Return the content of the blocks, which are asked for at once where the store's client can do so."""
        size = self.count * self.number.itemsize
        starts = [block * BLOCK_BYTES for block in blocks]
        ends = [min(start + BLOCK_BYTES, size) for start in starts]
        try:
            contents = self.system.cat_ranges([self.path] * len(blocks), starts, ends, on_error="return")
            for error in contents:
                if isinstance(error, BaseException):
                    raise error
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.uri} is missing though its folder is committed; prepare the data again"
            ) from error
        for block, content, start, end in zip(blocks, contents, starts, ends, strict=True):
            found, expected = hashlib.sha256(content).hexdigest(), self.digests[block].tobytes().hex()
            if found != expected:
                raise StorageError(
                    f"{self.uri}: bytes {start:,} to {end:,} have SHA-256 {found}, expected {expected}; restore the "
                    "file from a good copy, or delete the folder and prepare the data again"
                )
        return contents
