"""Local copies of prepared data: of what lies in a store, only the split that is read is copied."""

from pathlib import Path

from edlm.data.splits import Split
from edlm.data.token_file import INDEX, paths
from edlm.data.tokenizer import FILE
from edlm.local_cache import LocalCache
from edlm.local_copies import local_copy


def local_index(data: str, cache: LocalCache | None = None) -> Path:
    """Return the `local_copy` of the index and the tokenizer of prepared data, without any tokens."""
    return local_copy(data, cache, (INDEX, FILE))


def local_split(data: str, split: Split, cache: LocalCache | None = None) -> Path:
    """Return the `local_copy` of one split of prepared data, with its index and tokenizer.

    Without the split, it is that of the index and the tokenizer, from which `TokenFile.open` raises its error.
    """
    return local_copy(data, cache, split_files(split))


def split_files(split: Split) -> tuple[str, ...]:
    """Return the names of the files that `local_split` copies, whose digests are in the marker of their folder."""
    files = paths(Path(), split)
    return (INDEX, FILE, *(path.name for path in (files.tokens, files.documents, files.given)))
