"""Document batches that bound the memory of tokenization."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

BYTES = 250_000  # of UTF-8: the tokenizers library needs 110 to 160 bytes per byte while it encodes a batch


def batched(items: Iterable[T], text: Callable[[T], str]) -> Iterator[list[T]]:
    """Yield the items in lists whose texts total at most BYTES bytes of UTF-8, or of one item with more."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = _size(text(item))
        if batch and total + size > BYTES:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
