"""Splits: which document is trained on, which one measures, and which one teaches the judge."""

import hashlib
from collections.abc import Iterator
from typing import Literal

from edlm.config import ConfigurationError, Fraction, config
from edlm.corpus import CorpusConfig, Document

Split = Literal["train", "validation", "judge"]
SPLITS: tuple[Split, ...] = ("train", "validation", "judge")


@config
class Shares:
    """Parts of the corpus, by characters, that are kept from training; train gets the rest."""

    validation: Fraction
    judge: Fraction
    """What the judge, an autoregressive model of its own, is trained on; 0 for no judge."""

    def __post_init__(self) -> None:
        if self.validation + self.judge >= 1:
            raise ValueError(f"validation {self.validation} and judge {self.judge} leave nothing to train on")


def assigned(
    corpus: CorpusConfig, validation: CorpusConfig | None, shares: Shares
) -> Iterator[tuple[Document, Split | None]]:
    """Each document and its split; None where it is left out, because the validation corpus holds the same text.

    A document of `corpus` goes to the split that is furthest behind its share of the characters so far; a text that
    was seen before goes where it went first, so no two splits share a text. One pass, the same at every call; a digest
    of each document is kept in memory. Raises ConfigurationError where `corpus` holds no text that is kept.
    """
    homes: dict[bytes, Split | None] = {}
    if validation is not None:
        for document in validation.documents():
            homes[_key(document)] = None
            yield document, "validation"
    parts: dict[Split, float] = {
        "train": 1 - shares.validation - shares.judge,
        "validation": shares.validation,
        "judge": shares.judge,
    }
    characters = dict.fromkeys(parts, 0)
    for document in corpus.documents():
        key, size = _key(document), len(document.text)
        if key not in homes:
            homes[key] = _furthest_behind(parts, characters, size)
        home = homes[key]
        if home is not None:
            characters[home] += size
        yield document, home
    if not any(characters.values()):
        besides = "" if validation is None else ", or none that the validation corpus does not hold"
        raise ConfigurationError(f"the corpus holds no text{besides}; check its paths, split and text_field")


def _furthest_behind(parts: dict[Split, float], characters: dict[Split, int], size: int) -> Split:
    """The split whose share of the characters, with `size` more, is furthest above what it has."""
    total = sum(characters.values()) + size
    # The shortfalls sum to `size`, so the largest is above 0: a split without a share, whose shortfall is 0, gets none.
    return max(parts, key=lambda split: parts[split] * total - characters[split])


def _key(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode("utf-8"), digest_size=16).digest()
