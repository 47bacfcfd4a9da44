"""Splits: the documents that train the models, evaluate them, and train the judge.

A document's split is a function of a hash of its text. A document's length has no influence on it, so the documents of
every split follow one distribution. It does not depend on other documents, so any number of tasks can share the work.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Literal

import numpy as np
from jaxtyping import UInt64

from edlm.config import ConfigurationError, Fraction, config
from edlm.data.corpus import CorpusConfig, Document, Files
from edlm.data.encoded_documents import EncodedDocument
from edlm.data.file_part import FilePart
from edlm.data.synthetic import AbstractSource

Split = Literal["train", "validation", "judge"]
SPLITS: tuple[Split, ...] = ("train", "validation", "judge")

FEW = 1_000  # texts: with fewer, chance alone would leave a split far from its share, or empty
ORDERS = 64  # tried for few texts, to select the most even: mean sizes then differ by a tenth, not by half


@config
class Shares:
    """Shares of the corpus held out from training; train gets the rest.

    A document falls into a split with this probability, whatever its length: in expectation a split holds this share of
    the documents and of the characters, and it approaches the share as the number of documents grows.
    """

    validation: Fraction
    """Share for the validation loss and the evaluation; 0 if `data.validation` is a corpus of its own."""
    judge: Fraction = 0.0
    """Share that trains the judge, a separate autoregressive model; 0 for no judge."""

    def __post_init__(self) -> None:
        if self.validation + self.judge >= 1:
            raise ValueError(
                f"validation {self.validation} and judge {self.judge} leave nothing to train on; "
                "their sum must be below 1"
            )

    def parts(self) -> dict[Split, float]:
        """Return the share of each split whose share is not 0; they sum to 1."""
        parts: dict[Split, float] = {
            "train": 1 - self.validation - self.judge,
            "validation": self.validation,
            "judge": self.judge,
        }
        return {split: part for split, part in parts.items() if part > 0}


@dataclass(frozen=True)
class TextSplits:
    """Splits of a text corpus. Each text belongs to one split, with all its copies.

    Copies are texts that differ at most in line ends, trailing white space and Unicode form (`text_key`). A row that is
    longer than `longest` is one text, and its pieces are in one split. A txt document that is longer is streamed: its
    pieces are texts of their own, so that copies of it that are cut elsewhere may be in other splits. The texts of the
    validation corpus are left out of the other splits.
    """

    corpus: CorpusConfig
    validation: CorpusConfig | None
    shares: Shares
    held_out: UInt64[np.ndarray, " n"]
    """Keys of the validation corpus's texts, whole and in pieces, in ascending order."""
    balanced: Mapping[int, Split] | None
    """Split of each key if the corpus has fewer than FEW texts, else None."""

    def documents(self) -> Iterator[tuple[Document, Split | None]]:
        """Yield each document and its split, the validation corpus first; the split is None for documents left out.

        Every call yields the same. Raises ConfigurationError if no text of `corpus` is kept.
        """
        if self.validation is not None:
            for document in self.validation.documents():
                yield document, "validation"
        kept = False
        for document in self.corpus.documents():
            split = self.split(document)
            kept = kept or split is not None
            yield document, split
        self.require(kept)

    def require(self, kept: bool) -> None:
        """Raise ConfigurationError unless a text of `corpus` was `kept`."""
        if not kept:
            qualifier = "" if self.validation is None else ", or none that the validation corpus does not hold"
            raise ConfigurationError(f"the corpus holds no text{qualifier}; check its paths, split and text_field")

    def require_a_text_for_each(self) -> None:
        """Raise ConfigurationError if `corpus` has fewer different texts than there are splits to divide them among."""
        splits = list(self.shares.parts())
        if self.balanced and len(self.balanced) < len(splits):
            texts = f"{len(self.balanced)} {'text' if len(self.balanced) == 1 else 'different texts'}"
            raise ConfigurationError(
                f"the corpus holds {texts}, too few for the splits {', '.join(splits)}: a text, such as a file of txt "
                "or a row, belongs to one split as a whole; cut it into several (txt: set corpus.cut to paragraph or "
                "line; other formats: several rows)"
            )

    def split(self, document: Document | EncodedDocument) -> Split | None:
        """Return the split of a document of `corpus`; None if the validation corpus holds its text.

        Except in a corpus of few texts, it is a function of the text and the shares alone. A change of the shares
        moves only the texts that have to move: validation holds the lowest hashes, judge the highest.
        Raises ConfigurationError for a text that a corpus of few texts did not hold when it was first read.
        """
        key = document.key
        if len(self.held_out) and any(_among(each, self.held_out) for each in _keys(document)):
            return None
        if self.balanced is not None:
            if key not in self.balanced:
                raise ConfigurationError("the corpus has changed while it was read; prepare it again")
            return self.balanced[key]
        fraction = (key >> 11) / (1 << 53)  # the 53 bits that a float holds exactly, so that it stays below 1
        if fraction < self.shares.validation:
            return "validation"
        return "judge" if fraction >= 1 - self.shares.judge else "train"


@dataclass(frozen=True)
class SourceSplits:
    """Splits of a synthetic source: documents are assigned in turn, by their index.

    The sequences of a source are independent draws, and those of each split have to be, too. A hash of the text would
    keep equal sequences together: validation could hold none that the models are trained on, and would be a sample of
    another distribution than the source's. A document's index is independent of its content.
    """

    source: AbstractSource
    shares: Shares

    def documents(self) -> Iterator[tuple[Document, Split | None]]:
        """Yield each document and its split, the same at every call."""
        parts = self.shares.parts()
        characters = dict.fromkeys(parts, 0)
        for document in self.source.documents():
            size = len(document.text)
            split = _furthest_behind(parts, characters, size)
            characters[split] += size
            yield document, split


@dataclass
class SplitAssignment:
    """Splits of documents that are encoded in the meantime.

    Where a split is a function of the text alone, the task that encodes a text hashes it, too. Other splits are
    assigned as documents are read: those that are left out are never encoded.
    """

    splits: TextSplits | SourceSplits
    on_characters: Callable[[int], None]
    """Receives the length of each text that is left out."""
    dropped: int = 0
    """Documents left out so far."""
    _known: deque[Split] = field(default_factory=deque)
    _any: bool = False

    def parts(self) -> list[FilePart] | None:
        """Return parts of the documents to encode, which can be read alone; None if there are none."""
        corpus = None if self._by_text is None else self._by_text.corpus
        return corpus.parts() if isinstance(corpus, Files) else None

    def documents(self) -> Iterator[Document]:
        """Yield the documents to encode, those of all parts, once; errors as in `TextSplits.documents`."""
        if self._by_text is not None:
            yield from self._by_text.corpus.documents()
            return
        for document, split in self.splits.documents():
            if split is None:
                self.dropped += 1
                self.on_characters(len(document.text))
            else:
                self._known.append(split)
                yield document

    def split(self, document: EncodedDocument) -> Split:
        """Return the split of the next of these documents."""
        self._any = True
        if self._by_text is None:
            return self._known.popleft()
        split = self._by_text.split(document)
        assert split is not None  # nothing is held out
        return split

    def finish(self) -> None:
        """Raise ConfigurationError unless there was a document."""
        if self._by_text is not None:
            self._by_text.require(self._any)

    @property
    def _by_text(self) -> TextSplits | None:
        """The splits, if each is a function of the text alone."""
        return self.splits if isinstance(self.splits, TextSplits) and self.splits.validation is None else None


def divide(
    corpus: CorpusConfig, validation: CorpusConfig | None, shares: Shares, on_characters: Callable[[int], None]
) -> TextSplits | SourceSplits:
    """Return the splits of `corpus` and of `validation`, a separate corpus for that split.

    Reads the validation corpus, keeping 8 bytes per document, and at most FEW texts of `corpus`; calls
    `on_characters` with the number of characters of each document read.
    """
    if isinstance(corpus, AbstractSource):
        return SourceSplits(corpus, shares)
    held_out = np.array([], dtype=np.uint64)
    if validation is not None:
        keys = (key for document in _counted(validation, on_characters) for key in _keys(document))
        held_out = np.unique(np.fromiter(keys, dtype=np.uint64))
    few = list(islice(_texts(_counted(corpus, on_characters)), FEW))
    balanced = None if len(few) == FEW else _balanced(few, held_out, shares)
    return TextSplits(corpus, validation, shares, held_out, balanced)


def _counted(corpus: CorpusConfig, on_characters: Callable[[int], None]) -> Iterator[Document]:
    for document in corpus.documents():
        on_characters(len(document.text))
        yield document


def _keys(document: Document | EncodedDocument) -> set[int]:
    """Return the keys of the whole text and of the piece: of two equal texts, one may be a row and one streamed."""
    return {document.key, document.piece_key}


def _texts(documents: Iterator[Document]) -> Iterator[tuple[int, int]]:
    """Yield the key and the number of characters of each text, of which a row's pieces form one."""
    for whole_key, pieces in groupby(documents, key=lambda document: document.whole_key):
        if whole_key is None:
            yield from ((piece.key, len(piece.text)) for piece in pieces)
        else:
            yield whole_key, sum(len(piece.text) for piece in pieces)


def _balanced(few: Iterable[tuple[int, int]], held_out: UInt64[np.ndarray, " n"], shares: Shares) -> dict[int, Split]:
    """Return the split of each key in a corpus of few texts.

    Texts are assigned in hash order. Few texts of very unequal sizes divide badly in some orders (one long chapter may
    be the whole validation split), so ORDERS orders are tried: by the fractional parts of odd multiples of the hash.
    The one selected has splits nearest to their shares of both texts and characters, and so the most equal mean sizes.
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
    """Assign each key of `order` to the split that would be furthest below its share if the text had mean size.

    The text's own size has no influence, so the sizes in a split have the overall mean in expectation (a sum stopped by
    its past alone; Wald 1944). Each split gets one of the first texts, so that none is empty.
    """
    mean = sum(sizes.values()) / len(sizes)
    first, characters, homes = iter(parts), dict.fromkeys(parts, 0), {}
    for key in order:
        homes[key] = next(first, None) or _furthest_behind(parts, characters, mean)
        characters[homes[key]] += sizes[key]
    return homes


def _unevenness(homes: Mapping[int, Split], sizes: Mapping[int, int], parts: Mapping[Split, float]) -> float:
    """Return the largest deviation of a split from its share of texts or characters, relative to that share."""
    texts = Counter(homes.values())
    characters = dict.fromkeys(parts, 0)
    for key, split in homes.items():
        characters[split] += sizes[key]
    return max(
        abs(counts[split] / (part * sum(counts.values())) - 1)
        for counts in (texts, characters)
        for split, part in parts.items()
    )


def _furthest_behind(parts: Mapping[Split, float], held: Mapping[Split, int], size: float) -> Split:
    """Return the split furthest below its share of the characters, where `size` more are counted in the total."""
    total = sum(held.values()) + size
    return max(parts, key=lambda split: parts[split] * total - held[split])


def _among(key: int, keys: UInt64[np.ndarray, " n"]) -> bool:
    """Return whether `key` is one of `keys`, which are in ascending order."""
    index = np.searchsorted(keys, np.uint64(key))
    return bool(index < len(keys) and keys[index] == key)
