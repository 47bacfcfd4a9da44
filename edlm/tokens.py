"""Token files: a corpus cut into splits, tokenised and packed once, then read as rows in a reproducible order."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from jaxtyping import Int64
from torch import Tensor

from edlm.config import ConfigurationError, Fraction, NonNegative, Positive, config, parse, plain
from edlm.corpus import CorpusConfig, Document
from edlm.storage import Sha256
from edlm.streams import Purpose, seeds
from edlm.tokenizer import Tokenizer, TokenizerConfig, open_tokenizer

INDEX = "index.json"
STARTS = "<i8"  # how a document's start is stored
Split = Literal["train", "validation", "judge"]

BUFFER = 1_000_000  # characters tokenised at a time
REPORT = 20_000_000  # characters between two messages of progress
ROUNDS = 6  # of the Feistel network: more than the 4 of Luby and Rackoff 1988, as its halves are small; even


@config
class Shares:
    """Parts of the corpus, by characters, that are kept from training; train gets the rest."""

    validation: Fraction
    judge: Fraction
    """What the judge, an autoregressive model of its own, is trained on; 0 for no judge."""

    def __post_init__(self) -> None:
        if self.validation + self.judge >= 1:
            raise ValueError(f"validation {self.validation} and judge {self.judge} leave nothing to train on")


@config
class Data:
    """What the models are trained and measured on."""

    corpus: Annotated[CorpusConfig, pydantic.Field(discriminator="kind")]
    validation: Annotated[CorpusConfig, pydantic.Field(discriminator="kind")] | None = None
    """A corpus of its own for validation; texts that it holds are left out of train and judge."""
    tokenizer: Annotated[TokenizerConfig, pydantic.Field(discriminator="kind")]
    length: Positive
    """Tokens in a row."""
    shares: Shares

    def __post_init__(self) -> None:
        if self.validation is None and self.shares.validation == 0:
            raise ValueError("shares.validation is 0; give validation a share, or a corpus of its own")
        if self.validation is not None and self.shares.validation > 0:
            raise ValueError(
                f"shares.validation is {self.shares.validation}, but validation has a corpus of its own; set it to 0"
            )


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


@config
class Summary:
    """What a prepared folder holds: the content of its index.json."""

    tokenizer: Sha256
    """The digest of tokenizer.json."""
    vocabulary: Positive
    separator: NonNegative | None
    length: Positive
    """Every split has at least one row of this many tokens."""
    number: Literal["<u2", "<u4"]
    """How a token is stored: unsigned, little-endian, 2 or 4 bytes."""
    dropped: NonNegative
    """Documents left out because the validation corpus holds the same text."""
    splits: dict[Split, SplitSummary]


def prepare(data: Data, folder: Path, progress: Callable[[str], None]) -> Summary:
    """Afterwards `folder` holds the tokenizer, and every split's tokens and document starts, with an index.

    Streams: in memory are a megabyte of text, the document starts, and a digest of each document. Splits share no
    text. Killed before its end, it leaves a folder that `TokenFile.open` refuses. Raises ConfigurationError for an
    empty corpus, and for one that is too short for a row in every split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    tokenizer = data.tokenizer.build(document.text for document, split in assigned(data) if split == "train")
    tokenizer.save(folder)
    progress(f"tokenizer: {tokenizer.size:,} tokens")
    number = "<u2" if tokenizer.size <= 1 << 16 else "<u4"
    splits: tuple[Split, ...] = ("train", "validation", "judge") if data.shares.judge > 0 else ("train", "validation")
    dropped = 0
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_Writer(folder, split, number)) for split in splits}
        for batch in _batches(assigned(data), progress):
            kept = [(document, split) for document, split in batch if split is not None]
            dropped += len(batch) - len(kept)
            for (document, split), ids in zip(kept, _tokenised(tokenizer, kept), strict=True):
                writers[split].write(document.text, ids)
        summaries = {split: writer.summary() for split, writer in writers.items()}
    _require_rows(summaries, data.length)
    summary = Summary(
        tokenizer=tokenizer.digest,
        vocabulary=tokenizer.size,
        separator=tokenizer.separator,
        length=data.length,
        number=number,
        dropped=dropped,
        splits=summaries,
    )
    (folder / INDEX).write_text(json.dumps(plain(summary), indent=1), encoding="utf-8")
    for split, held in summaries.items():
        progress(f"{split}: {held.documents:,} documents, {held.tokens:,} tokens, {held.bytes:,} bytes of text")
    return summary


def assigned(data: Data) -> Iterator[tuple[Document, Split | None]]:
    """Each document and its split; None where it is dropped, as the validation corpus holds the same text.

    A document goes to the split that is furthest behind its share of the characters so far; a text that was seen
    before goes where it went first. One pass, and the same at every call.
    """
    homes: dict[bytes, Split | None] = {}
    if data.validation is not None:
        for document in data.validation.documents():
            homes[_key(document)] = None
            yield document, "validation"
    shares: dict[Split, float] = {
        "train": 1 - data.shares.validation - data.shares.judge,
        "validation": data.shares.validation,
        "judge": data.shares.judge,
    }
    characters = dict.fromkeys(shares, 0)
    for document in data.corpus.documents():
        key, size = _key(document), len(document.text)
        if key not in homes:
            total = sum(characters.values()) + size
            # The shortfalls sum to the document's own size: the largest is above 0, which a split without a share has.
            homes[key] = max(shares, key=lambda split: shares[split] * total - characters[split])
        home = homes[key]
        if home is not None:
            characters[home] += size
        yield document, home


@dataclass(frozen=True)
class TokenFile:
    """One split of a prepared folder, mapped into memory; documents[i] is where document i starts in tokens."""

    tokens: np.ndarray
    documents: np.ndarray
    vocabulary: int
    separator: int | None

    @staticmethod
    def open(folder: Path, split: Split) -> "TokenFile":
        """The split; ValueError naming the file that is missing, of a wrong size, or of another tokenizer."""
        summary = read_summary(folder)
        if split not in summary.splits:
            raise ValueError(f"{folder} has no split {split!r}, only {', '.join(summary.splits)}; set shares.{split}")
        digest = open_tokenizer(folder).digest
        if digest != summary.tokenizer:
            raise ValueError(
                f"{folder}: the tokens were made with tokenizer {summary.tokenizer}, tokenizer.json is {digest}; "
                "prepare the data again"
            )
        held = summary.splits[split]
        return TokenFile(
            tokens=_mapped(folder / f"{split}.bin", summary.number, held.tokens),
            documents=_mapped(folder / f"{split}.documents.bin", STARTS, held.documents),
            vocabulary=summary.vocabulary,
            separator=summary.separator,
        )


def read_summary(folder: Path) -> Summary:
    """The index of a prepared folder; ValueError where it is missing or damaged."""
    path = folder / INDEX
    try:
        return parse(Summary, json.loads(path.read_text(encoding="utf-8")), source=str(path))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no prepared data (no {INDEX}); run the prepare stage to its end") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data again") from error


@dataclass(frozen=True)
class Rows:
    """Some rows of the global batch of one step: `places` are theirs in it, of `of`."""

    tokens: Int64[Tensor, "b l"]
    step: int
    places: Int64[Tensor, " b"]
    of: int


@dataclass(frozen=True)
class Batches:
    """The order of training: each epoch is a permutation of its own of all rows of `length` tokens.

    A row is `length` consecutive tokens of the packed stream; the tokens behind the last whole row are not used.
    """

    tokens: TokenFile
    length: int
    batch: int
    """Rows in a step, over all workers."""
    seed: int

    def __post_init__(self) -> None:
        _count(self.tokens, self.length)

    def rows(self, step: int, start: int, stop: int) -> Rows:
        """The rows at the places start..stop-1 of the batch of `step`: a function of (seed, step, place) alone."""
        if not 0 <= start <= stop <= self.batch:
            raise ValueError(f"places {start} to {stop} are not within a batch of {self.batch} rows")
        places = torch.arange(start, stop)
        count = _count(self.tokens, self.length)
        drawn = places + step * self.batch
        chosen = permuted(drawn % count, count, self.seed, drawn // count)
        return Rows(_gather(self.tokens, chosen, self.length), step, places, self.batch)


def whole(tokens: TokenFile, length: int, limit: int) -> Int64[Tensor, "n l"]:
    """At most `limit` rows of `length` tokens, evenly spaced over the split: what a model is measured on."""
    count = _count(tokens, length)
    n = min(limit, count)
    return _gather(tokens, torch.arange(n) * count // n, length)


def permuted(index: Int64[Tensor, " b"], count: int, seed: int, epoch: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Where the permutation (seed, epoch) of 0..count-1 takes each `index`, without ever holding the permutation.

    A Feistel network permutes the next power of two; what leaves 0..count-1 is sent through it again (Black and
    Rogaway 2002, cycle walking). It takes less than two passes on average.
    """
    bits = (count - 1).bit_length()
    index = _feistel(index, bits, seed, epoch)
    while bool((outside := index >= count).any()):
        index = torch.where(outside, _feistel(index, bits, seed, epoch), index)
    return index


def _feistel(index: Tensor, bits: int, seed: int, epoch: Tensor) -> Tensor:
    low = bits // 2
    high = bits - low
    left, right = index >> low, index & ((1 << low) - 1)
    for number in range(ROUNDS):
        drawn = seeds(seed, epoch, (right << 8) | number, Purpose.ORDER)
        left, right = right, left ^ (drawn & ((1 << high) - 1))
        low, high = high, low
    return (left << low) | right


def _count(tokens: TokenFile, length: int) -> int:
    count = len(tokens.tokens) // length
    if count == 0:
        raise ValueError(f"{len(tokens.tokens)} tokens do not fill one row of length {length}; prepare more text")
    return count


def _gather(tokens: TokenFile, rows: Int64[Tensor, " n"], length: int) -> Int64[Tensor, "n l"]:
    places = rows.numpy()[:, None] * length + np.arange(length)
    return torch.from_numpy(tokens.tokens[places].astype(np.int64))


class _Writer:
    """One split's files while they grow."""

    def __init__(self, folder: Path, split: Split, number: str) -> None:
        self._number = np.dtype(number)
        self._tokens = (folder / f"{split}.bin").open("wb")
        self._starts_path = folder / f"{split}.documents.bin"
        self._starts = array("q")
        self._sha256 = hashlib.sha256()
        self._count = self._characters = self._bytes = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()

    def write(self, text: str, ids: np.ndarray) -> None:
        raw = ids.astype(self._number).tobytes()
        self._tokens.write(raw)
        self._sha256.update(raw)
        self._starts.append(self._count)
        self._count += len(ids)
        self._characters += len(text)
        self._bytes += len(text.encode("utf-8"))

    def summary(self) -> SplitSummary:
        """What was written; afterwards the document starts are on the disk as well."""
        starts = np.frombuffer(self._starts, dtype=np.int64).astype(STARTS).tobytes()
        self._starts_path.write_bytes(starts)
        return SplitSummary(
            documents=len(self._starts),
            tokens=self._count,
            characters=self._characters,
            bytes=self._bytes,
            sha256=self._sha256.hexdigest(),
            documents_sha256=hashlib.sha256(starts).hexdigest(),
        )


def _batches(
    documents: Iterator[tuple[Document, Split | None]], progress: Callable[[str], None]
) -> Iterator[list[tuple[Document, Split | None]]]:
    """The documents in lists of about BUFFER characters; `progress` hears how far it is."""
    batch, size, done = [], 0, 0
    for document, split in documents:
        batch.append((document, split))
        size += len(document.text)
        if size >= BUFFER:
            yield batch
            if done // REPORT < (done + size) // REPORT:
                progress(f"tokenised {(done + size) / 1e6:,.0f} million characters")
            batch, size, done = [], 0, done + size
    yield batch


def _tokenised(tokenizer: Tokenizer, documents: list[tuple[Document, Split]]) -> list[np.ndarray]:
    return tokenizer.encode_documents([document.text for document, _ in documents])


def _require_rows(summaries: dict[Split, SplitSummary], length: int) -> None:
    if not any(held.documents for held in summaries.values()):
        raise ConfigurationError("corpus: holds no text; check its paths and fields")
    for split, held in summaries.items():
        if held.tokens < length:
            raise ConfigurationError(
                f"the {split} split has {held.documents} documents with {held.tokens} tokens, too few for one row of "
                f"length {length}; give more text, a larger share of it, smaller documents (corpus.cut), "
                "or set a smaller length"
            )


def _key(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode("utf-8"), digest_size=16).digest()


def _mapped(path: Path, number: str, count: int) -> np.ndarray:
    expected = count * np.dtype(number).itemsize
    if not path.is_file():
        raise ValueError(f"{path} is missing; prepare the data again")
    if (found := path.stat().st_size) != expected:
        raise ValueError(f"{path} has {found} bytes, its index says {expected}: it is damaged; prepare the data again")
    return np.memmap(path, dtype=number, mode="r", shape=(count,))
