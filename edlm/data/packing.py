"""Packing: the documents of a split become one stream of tokens, which `edlm.data.batches` cuts into rows.

A row may hold the end of one document and the beginning of the next, but all of a pair of a prompt and an answer.
"""

import hashlib
from array import array
from pathlib import Path

import numpy as np
from jaxtyping import Int

from edlm.data.encoded_documents import EncodedDocument
from edlm.data.repeats import Repeats
from edlm.data.splits import Split
from edlm.data.token_blocks import BlockWriter
from edlm.data.token_file import START, Number, PartSummary, SplitSummary, paths


class SplitWriter:
    """Writer of the files of `split` in `folder`; memory holds 8 bytes per document, and the frequent texts.

    A pair of a prompt and an answer lies within one row of `length` tokens: separators fill the row before it if it
    does not fit, and its end is left out if it is longer than a row. Pairs take up to 32 bytes more.
    """

    def __init__(self, folder: Path, split: Split, number: Number, length: int, separator: int | None) -> None:
        self._files = paths(folder, split)
        self._length, self._separator = length, separator
        self._given = array("q")
        self._pairs = self._cut = self._padding = 0
        self._tokens = self._files.tokens.open("wb")
        self._blocks = BlockWriter(self._tokens)
        self._number = np.dtype(number)
        self._starts = array("q")
        self._repeats = Repeats()
        self._parts: dict[str, PartSummary] = {}
        self._count = self._characters = self._bytes = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()

    def write(self, document: EncodedDocument) -> None:
        """Append the document to the files."""
        ids, given = document.ids, document.given
        if given is not None:
            ids = self._fitted(ids)
            self._pairs += 1
            self._given.extend((self._count, self._count + min(given, len(ids))))
        self._starts.append(self._count)
        self._append(ids)
        self._characters += document.characters
        self._bytes += document.bytes
        self._repeats.add(document.piece_key, document.beginning)
        if document.part is not None:
            known = self._parts.get(document.part, PartSummary())
            self._parts[document.part] = PartSummary(
                documents=known.documents + 1,
                tokens=known.tokens + len(ids),
                characters=known.characters + document.characters,
            )

    def _fitted(self, ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """Return the part of a pair that fits into one row; fill the current row if it does not fit into its rest."""
        self._cut += len(ids) > self._length
        ids = ids[: self._length]
        room = -self._count % self._length
        if room < len(ids) and room:
            assert self._separator is not None
            self._given.extend((self._count, self._count + room))
            self._append(np.full(room, self._separator))
            self._padding += room
        return ids

    def _append(self, ids: Int[np.ndarray, " n"]) -> None:
        self._blocks.write(np.ascontiguousarray(ids, dtype=self._number).view(np.uint8).data)
        self._count += len(ids)

    def finish(self) -> SplitSummary:
        """Complete the files and return a summary of their content."""
        digests = self._blocks.finish()
        self._tokens.close()
        self._files.digests.write_bytes(digests)
        given = np.array(self._given, dtype=START).tobytes()
        if given:
            self._files.given.write_bytes(given)
        starts = np.frombuffer(self._starts, dtype=np.int64).astype(START, copy=False).tobytes()
        self._files.documents.write_bytes(starts)
        return SplitSummary(
            documents=len(self._starts),
            tokens=self._count,
            characters=self._characters,
            bytes=self._bytes,
            digests_sha256=hashlib.sha256(digests).hexdigest(),
            documents_sha256=hashlib.sha256(starts).hexdigest(),
            repeated=self._repeats.notable(),
            pairs=self._pairs,
            cut=self._cut,
            padding=self._padding,
            given=len(self._given) // 2,
            given_sha256=hashlib.sha256(given).hexdigest(),
            parts=self._parts,
        )
