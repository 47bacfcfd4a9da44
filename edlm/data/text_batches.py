"""Batches of documents, bounded in memory while they are tokenised."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

BYTES = 250_000  # of UTF-8: the tokenizers library needs 110 to 160 bytes for each of them while it encodes a batch


def batched(items: Iterable[T], text: Callable[[T], str]) -> Iterator[list[T]]:
    """The items in lists whose texts have at most BYTES bytes of UTF-8 together, or of one item with more."""
    batch: list[T] = []
    held = 0
    for item in items:
        size = _size(text(item))
        if batch and held + size > BYTES:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size
    if batch:
        yield batch


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
