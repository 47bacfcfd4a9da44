"""Documents that another process encodes: their texts are one array, which travels without a copy in a pickle."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import UInt8

from edlm.data.document import Document
from edlm.data.encoded_documents import DocumentBatch

ERRORS = "surrogatepass"  # half of a surrogate pair arrives, too, to be refused with its reason


@dataclass(frozen=True)
class PackedDocuments:
    """Batches of documents that are sent to a task.

    Examples:
        >>> packed = PackedDocuments.of([[Document("naïve", "a.txt")]])
        >>> len(packed.utf8), [document.text for batch in packed.batches() for document in batch]
        (6, ['naïve'])
    """

    utf8: UInt8[np.ndarray, " n"]
    """Texts in UTF-8, one after another."""
    ends: tuple[int, ...]
    """0, and the end of each text."""
    others: Sequence[Sequence[Mapping[str, Any]]]
    """By batch: what else each document holds, its key too if it has been computed."""

    @staticmethod
    def of(batches: Sequence[DocumentBatch]) -> "PackedDocuments":
        """Return the batches, packed."""
        texts = [document.text.encode("utf-8", ERRORS) for batch in batches for document in batch]
        others = [[{**vars(document), "text": None} for document in batch] for batch in batches]
        ends = np.cumsum([0, *map(len, texts)]).tolist()
        return PackedDocuments(np.frombuffer(b"".join(texts), dtype=np.uint8), tuple(ends), others)

    def batches(self) -> Iterator[DocumentBatch]:
        """Yield the batches, whose documents are equal to those packed."""
        content = self.utf8.data
        texts = (str(content[start:end], "utf-8", ERRORS) for start, end in pairwise(self.ends))
        for batch in self.others:
            yield [_document(others, next(texts)) for others in batch]


def _document(others: Mapping[str, Any], text: str) -> Document:
    document = object.__new__(Document)  # the constructor takes no key
    vars(document).update(others, text=text)
    return document
