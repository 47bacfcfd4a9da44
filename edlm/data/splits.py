"""Splits: which document is trained on, which one measures, and which one teaches the judge.

A document's split is a function of a hash of its text. A document's length has no influence on it, so the documents of
every split follow one law; it needs no knowledge of other documents, so any number of tasks can share the work.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import UInt64

from edlm.config import ConfigurationError, Fraction, config
from edlm.data.corpus import CorpusConfig, Document
from edlm.data.synthetic import AbstractSource

Split = Literal["train", "validation", "judge"]
SPLITS: tuple[Split, ...] = ("train", "validation", "judge")

FEW = 1_000  # documents: of fewer, chance alone would leave a split far from its share, or empty
ORDERS = (
    64  # in which few documents are shared out, to keep the fairest: mean sizes then differ by a tenth, not by half
)


@config
class Shares:
    """Parts of the corpus that are kept from training; train gets the rest.

    A document falls into a split with this probability, whatever its length: in expectation a split holds this part of
    the documents and of the characters, and the more documents there are the nearer it comes to it.
    """

    validation: Fraction
    judge: Fraction
    """What the judge, an autoregressive model of its own, is trained on; 0 for no judge."""

    def __post_init__(self) -> None:
        if self.validation + self.judge >= 1:
            raise ValueError(f"validation {self.validation} and judge {self.judge} leave nothing to train on")

    def parts(self) -> dict[Split, float]:
        """The part of each split that has one; they sum to 1."""
        parts: dict[Split, float] = {
            "train": 1 - self.validation - self.judge,
            "validation": self.validation,
            "judge": self.judge,
        }
        return {split: part for split, part in parts.items() if part > 0}


@dataclass(frozen=True)
class TextSplits:
    """The splits of a corpus of text. Each text belongs to one split, and all its copies with it.

    Copies are texts that differ at most in line ends, trailing white space and Unicode form (`text_key`). What the
    validation corpus holds is left out of the others.
    """

    corpus: CorpusConfig
    validation: CorpusConfig | None
    shares: Shares
    held_out: UInt64[np.ndarray, " n"]
    """The keys of the texts of the validation corpus, in ascending order."""
    balanced: Mapping[int, Split] | None
    """The split of each key, where the corpus has fewer than FEW documents."""

    def documents(self) -> Iterator[tuple[Document, Split | None]]:
        """Each document and its split, the validation corpus first; None where a document is left out.

        The same at every call. Raises ConfigurationError where `corpus` holds no text that is kept.
        """
        if self.validation is not None:
            for document in self.validation.documents():
                yield document, "validation"
        kept = False
        for document in self.corpus.documents():
            split = self.split(document.text)
            kept = kept or split is not None
            yield document, split
        if not kept:
            besides = "" if self.validation is None else ", or none that the validation corpus does not hold"
            raise ConfigurationError(f"the corpus holds no text{besides}; check its paths, split and text_field")

    def split(self, text: str) -> Split | None:
        """The split of a document of `corpus`; None where the validation corpus holds its text.

        A function of the text and the shares alone, but in a corpus of few documents. With other shares only the
        documents change their split that have to: validation holds the lowest hashes, the judge the highest.
        Raises ConfigurationError for a text that a corpus of few documents did not hold when it was first read.
        """
        key = text_key(text)
        if _among(key, self.held_out):
            return None
        if self.balanced is not None:
            if key not in self.balanced:
                raise ConfigurationError("the corpus has changed while it was read; prepare it again")
            return self.balanced[key]
        place = (key >> 11) / (1 << 53)  # the 53 bits that a float holds exactly, so that it stays below 1
        if place < self.shares.validation:
            return "validation"
        return "judge" if place >= 1 - self.shares.judge else "train"


@dataclass(frozen=True)
class SourceSplits:
    """The splits of a source: its documents in turn, by their index.

    The sequences of a source are independent draws, and those of each split have to be: a hash of the text would keep
    equal sequences together, so that validation could hold none that the models are trained on, and would be a sample
    of another law than the source's. A document's index says nothing of what was drawn.
    """

    source: AbstractSource
    shares: Shares

    def documents(self) -> Iterator[tuple[Document, Split | None]]:
        """Each document and its split, the same at every call."""
        parts = self.shares.parts()
        held = dict.fromkeys(parts, 0)
        for document in self.source.documents():
            size = len(document.text)
            split = _furthest_behind(parts, held, size)
            held[split] += size
            yield document, split


def divide(
    corpus: CorpusConfig, validation: CorpusConfig | None, shares: Shares, heard: Callable[[int], None]
) -> TextSplits | SourceSplits:
    """The splits of `corpus`, and of `validation`, a corpus of its own for that split.

    Reads the validation corpus, of which 8 bytes a document are kept, and at most FEW documents of `corpus`; `heard` is
    told the characters of each as it is read.
    """
    if isinstance(corpus, AbstractSource):
        return SourceSplits(corpus, shares)
    held_out = np.array([], dtype=np.uint64)
    if validation is not None:
        keys = (key for key, _ in _keyed(validation, heard))
        held_out = np.unique(np.fromiter(keys, dtype=np.uint64))
    few = list(islice(_keyed(corpus, heard), FEW))
    balanced = None if len(few) == FEW else _balanced(few, held_out, shares)
    return TextSplits(corpus, validation, shares, held_out, balanced)


def text_key(text: str) -> int:
    """64 bits of a hash of `text`, equal for copies of it.

    Texts are copies that are equal in Unicode's form NFC with line ends LF and without white space at the end of
    lines and of the text.
    """
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    plain = "\n".join(line.rstrip() for line in lines).rstrip()
    # A hash of our own: a corpus that somebody chose by BLAKE2b of its texts is no special one.
    return int.from_bytes(hashlib.blake2b(plain.encode("utf-8"), digest_size=8, person=b"edlm splits").digest())


def _keyed(corpus: CorpusConfig, heard: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """Key and characters of each document."""
    for document in corpus.documents():
        heard(len(document.text))
        yield text_key(document.text), len(document.text)


def _balanced(few: Iterable[tuple[int, int]], held_out: UInt64[np.ndarray, " n"], shares: Shares) -> dict[int, Split]:
    """The split of each key of few documents.

    Texts are walked in hash order. Few texts of very unequal sizes share out badly in some orders (one long chapter
    may be all there is to validate on), so the walk is tried in ORDERS of them, the fractional parts of odd multiples
    of the hash. Kept is the one whose splits come nearest to their parts both of the texts and of the characters, and
    so have the most equal mean sizes.
    """
    sizes: Counter[int] = Counter()
    for key, size in few:
        if not _among(key, held_out):
            sizes[key] += size
    if not sizes:
        return {}
    parts = shares.parts()
    orders = (sorted(sizes, key=lambda key: odd * key % (1 << 64)) for odd in range(1, 2 * ORDERS, 2))
    return min((_walked(order, sizes, parts) for order in orders), key=lambda homes: _unevenness(homes, sizes, parts))


def _walked(order: Sequence[int], sizes: Mapping[int, int], parts: Mapping[Split, float]) -> dict[int, Split]:
    """Each key of `order` goes to the split that would be furthest behind its part if the text were of mean size.

    Its own size has no influence: the sizes in a split have the mean of all in expectation (a sum that is stopped by
    its past alone; Wald 1944). Each split gets one of the first texts, so that none is empty.
    """
    mean = sum(sizes.values()) / len(sizes)
    first, held, homes = iter(parts), dict.fromkeys(parts, 0), {}
    for key in order:
        homes[key] = next(first, None) or _furthest_behind(parts, held, mean)
        held[homes[key]] += sizes[key]
    return homes


def _unevenness(homes: Mapping[int, Split], sizes: Mapping[int, int], parts: Mapping[Split, float]) -> float:
    """The largest distance of a split from its part, of the texts or of the characters, relative to that part."""
    texts = Counter(homes.values())
    characters = dict.fromkeys(parts, 0)
    for key, split in homes.items():
        characters[split] += sizes[key]
    return max(
        abs(held[split] / (part * sum(held.values())) - 1)
        for held in (texts, characters)
        for split, part in parts.items()
    )


def _furthest_behind(parts: Mapping[Split, float], held: Mapping[Split, int], size: float) -> Split:
    """The split whose part of the characters, with `size` more, is furthest above what it has."""
    total = sum(held.values()) + size
    return max(parts, key=lambda split: parts[split] * total - held[split])


def _among(key: int, keys: UInt64[np.ndarray, " n"]) -> bool:
    """Whether `key` is one of `keys`, which ascend."""
    place = np.searchsorted(keys, np.uint64(key))
    return bool(place < len(keys) and keys[place] == key)
