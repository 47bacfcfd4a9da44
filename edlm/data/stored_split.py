"""Splits as training reads them: a verified copy on this machine or, of a large one, the blocks that are read next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int64, UInt

from edlm.data.local_splits import local_index, local_split, split_files
from edlm.data.splits import Split
from edlm.data.token_blocks import BLOCK_BYTES, DIGEST_BYTES, StoredTokens
from edlm.data.token_file import (
    INDEX,
    TokenFile,
    loss_mask,
    mapped_file,
    mapped_given,
    paths,
    read_summary,
    split_summary,
)
from edlm.data.tokenizer import FILE
from edlm.file_systems import file_system
from edlm.local_cache import LocalCache, default_cache
from edlm.local_copies import bytes_to_copy, local_copy
from edlm.storage import join


class SplitTokens(Protocol):
    """Tokens of a split, by their indices."""

    @property
    def count(self) -> int:
        """Number of tokens."""
        ...

    def at(self, indices: Int64[np.ndarray, "b l"]) -> UInt[np.ndarray, "b l"]:
        """Return the tokens at these indices."""
        ...

    def loss_mask(self, indices: Int64[np.ndarray, "b l"]) -> Bool[np.ndarray, "b l"] | None:
        """Return which tokens at these indices count in a loss; None: all tokens of the split do."""
        ...


@dataclass(frozen=True)
class StoredSplit:
    """Split whose tokens stay in a store; its other files, a few bytes per block and per prompt, are local."""

    tokens: StoredTokens
    given: Int64[np.ndarray, "n 2"] | None

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.tokens.count

    def at(self, indices: Int64[np.ndarray, "b l"]) -> UInt[np.ndarray, "b l"]:
        """Fetch the tokens at these indices; errors as in `StoredTokens.at`."""
        return self.tokens.at(indices)

    def loss_mask(self, indices: Int64[np.ndarray, "b l"]) -> Bool[np.ndarray, "b l"] | None:
        """Return which tokens at these indices count in a loss; None: all tokens of the split do."""
        return loss_mask(self.given, indices)

    @staticmethod
    def open(data: str, split: Split, cache: LocalCache | None = None) -> "StoredSplit":
        """Open a split of prepared data; errors as in `TokenFile.open` and `local_copy`."""
        names = paths(Path(), split)
        folder = local_copy(data, cache, (INDEX, FILE, names.given.name, names.digests.name))
        summary, held = split_summary(folder, split)
        number = np.dtype(summary.number)
        blocks = -(-held.tokens * number.itemsize // BLOCK_BYTES)
        digests = mapped_file(paths(folder, split).digests, "u1", blocks * DIGEST_BYTES).reshape(blocks, DIGEST_BYTES)
        uri = join(data, names.tokens.name)
        tokens = StoredTokens(uri, *file_system(uri), held.tokens, number, digests)
        return StoredSplit(tokens, mapped_given(folder, split, held))


def open_split(data: str, split: Split, rows: int, cache: LocalCache | None = None) -> SplitTokens:
    """Open a split of prepared data of which this machine reads `rows` rows.

    A split in a store is copied, unless less has to be fetched without a copy, or the copy would exceed the cache: then
    its tokens stay where they are. Errors as in `TokenFile.open` and `local_copy`.
    """
    cache = cache or default_cache()
    size = bytes_to_copy(data, cache, split_files(split))
    if size == 0 or size <= min(cache.limit_bytes, _fetched(data, rows, cache)):
        return TokenFile.open(local_split(data, split, cache), split)
    return StoredSplit.open(data, split, cache)


def _fetched(data: str, rows: int, cache: LocalCache) -> int:
    """Return how many bytes are fetched for so many rows, each from a random place of a split."""
    summary = read_summary(local_index(data, cache))
    return rows * (BLOCK_BYTES + summary.length * np.dtype(summary.number).itemsize)
