"""The files of one split: packed tokens and document starts, written as a stream and mapped into memory when read."""

import hashlib
from array import array
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Int64, UInt

from edlm.config import NonNegative, config
from edlm.repeats import Repeated, Repeats
from edlm.splits import Split, text_key
from edlm.storage import Sha256

Number = Literal["<u2", "<u4"]  # how a token is stored: unsigned, little-endian, 2 or 4 bytes
START = "<i8"  # how a document's start is stored


@config
class SplitSummary:
    """What one split holds; `bytes` are those of its text in UTF-8."""

    documents: NonNegative
    tokens: NonNegative
    characters: NonNegative
    bytes: NonNegative
    sha256: Sha256
    """Of the file of tokens."""
    documents_sha256: Sha256
    """Of the file of document starts."""
    repeated: tuple[Repeated, ...]
    """The texts that are ten documents or more and more than 1 % of all, the most frequent first."""


class SplitWriter:
    """The files of `split` in `folder` while they grow; in memory are 8 bytes a document, and the frequent ones."""

    def __init__(self, folder: Path, split: Split, number: Number) -> None:
        tokens, self._starts_file = paths(folder, split)
        self._tokens = tokens.open("wb")
        self._number = np.dtype(number)
        self._starts = array("q")
        self._sha256 = hashlib.sha256()
        self._repeats = Repeats()
        self._count = self._characters = self._bytes = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()

    def write(self, text: str, ids: Int[np.ndarray, " n"]) -> None:
        """Afterwards the document `text` stands in the file as `ids`."""
        raw = ids.astype(self._number).tobytes()
        self._tokens.write(raw)
        self._sha256.update(raw)
        self._starts.append(self._count)
        self._count += len(ids)
        self._characters += len(text)
        self._bytes += len(text.encode("utf-8"))
        self._repeats.add(text_key(text), text)

    def finish(self) -> SplitSummary:
        """What was written; afterwards both files are complete."""
        self._tokens.close()
        starts = np.frombuffer(self._starts, dtype=np.int64).astype(START, copy=False).tobytes()
        self._starts_file.write_bytes(starts)
        return SplitSummary(
            documents=len(self._starts),
            tokens=self._count,
            characters=self._characters,
            bytes=self._bytes,
            sha256=self._sha256.hexdigest(),
            documents_sha256=hashlib.sha256(starts).hexdigest(),
            repeated=self._repeats.notable(),
        )


def paths(folder: Path, split: Split) -> tuple[Path, Path]:
    """Where a split's tokens and its document starts lie."""
    return folder / f"{split}.bin", folder / f"{split}.documents.bin"


def mapped(
    folder: Path, split: Split, number: Number, held: SplitSummary
) -> tuple[UInt[np.ndarray, " n"], Int64[np.ndarray, " documents"]]:
    """A split's tokens and document starts; ValueError naming the file that is missing or not of its size."""
    tokens, starts = paths(folder, split)
    return _mapped(tokens, number, held.tokens), _mapped(starts, START, held.documents)


def _mapped(path: Path, number: str, count: int) -> np.ndarray:
    expected = count * np.dtype(number).itemsize
    if not path.is_file():
        raise ValueError(f"{path} is missing; prepare the data again")
    if (found := path.stat().st_size) != expected:
        raise ValueError(f"{path} has {found} bytes, its index says {expected}: it is damaged; prepare the data again")
    return np.memmap(path, dtype=number, mode="r", shape=(count,))
