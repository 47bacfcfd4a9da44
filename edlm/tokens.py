"""Token files: a corpus cut into splits, tokenised and packed once, then read as rows in a reproducible order."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
from jaxtyping import Int64, UInt
from torch import Tensor

from edlm.batching import batched
from edlm.config import ConfigurationError, NonNegative, Positive, config, parse, plain
from edlm.corpus import CorpusConfig, Document
from edlm.lost_characters import Losses, Lost
from edlm.order import permuted
from edlm.progress import Progress
from edlm.sources import AbstractSource
from edlm.split_files import Number, SplitSummary, SplitWriter, mapped, paths
from edlm.splits import SPLITS, Shares, SourceSplits, Split, TextSplits, divide
from edlm.storage import Sha256, write_text
from edlm.tokenizer import Tokenizer, open_tokenizer
from edlm.tokenizer_kinds import Symbols, TokenizerConfig

INDEX = "index.json"


@config
class Data:
    """What the models are trained and measured on."""

    corpus: Annotated[CorpusConfig, pydantic.Field(discriminator="kind")]
    validation: Annotated[CorpusConfig | None, pydantic.Field(discriminator="kind")] = None
    """A corpus of its own for validation; texts that it holds, copies included, are left out of train and judge."""
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
        self._check_source()

    def _check_source(self) -> None:
        """Symbols and a source go together, and a row is one of its sequences."""
        source = self.corpus
        if isinstance(self.validation, AbstractSource) or (isinstance(source, AbstractSource) and self.validation):
            raise ValueError(
                "a source needs no validation corpus: its sequences are independent; set shares.validation"
            )
        if not isinstance(source, AbstractSource):
            if isinstance(self.tokenizer, Symbols):
                raise ValueError("tokenizer.kind symbols has no tokens for text; it is for a source, such as markov")
            return
        if source.length != self.length:
            raise ValueError(
                f"length is {self.length} and corpus.length is {source.length}; "
                "a row is one sequence of the source: set both to one number"
            )
        if self.tokenizer != Symbols(size=source.symbols):
            raise ValueError(f"a source of {source.symbols} symbols needs {{kind: symbols, size: {source.symbols}}}")

    def version(self) -> list[str]:
        """Changes when the text behind the settings does: the settings alone do not tell."""
        return [corpus.version() for corpus in (self.corpus, self.validation) if corpus is not None]

    def splits(self, heard: Callable[[int], None]) -> TextSplits | SourceSplits:
        """The split of every document; reads a part of the corpus to tell, and tells `heard` the characters read."""
        return divide(self.corpus, self.validation, self.shares, heard)


@config
class Summary:
    """What a prepared folder holds: the content of its index.json."""

    tokenizer: Sha256
    """The digest of tokenizer.json."""
    vocabulary: Positive
    separator: NonNegative | None
    length: Positive
    """Every split has at least one row of this many tokens."""
    number: Number
    """How a token is stored, as numpy spells it."""
    dropped: NonNegative
    """Documents left out because the validation corpus holds the same text."""
    lost: Lost | None
    """What the tokenizer loses of the text; None where that is not more than 1 %."""
    splits: dict[Split, SplitSummary]

    def lines(self) -> Iterator[str]:
        """What each split holds, and what of it may be unwanted, for the person who watches."""
        for split, held in self.splits.items():
            yield f"{split}: {held.documents:,} documents, {held.tokens:,} tokens, {held.bytes:,} bytes of text"
            for text in held.repeated:
                yield (
                    f"{split}: {text.documents:,} of its documents ({text.share:.1%}) are one text, which is in no "
                    f"other split: {text.beginning!r}; leave it out of the corpus if it is no text to learn"
                )
        if self.lost is not None:
            yield (
                f"the tokenizer loses {self.lost.share:.1%} of the characters (of {self.lost.sample:,} looked at), "
                f"most often {' '.join(self.lost.examples)}; tokenizer.kind bytes and bpe lose none"
            )


def prepare(data: Data, folder: Path, progress: Callable[[str], None]) -> Summary:
    """Afterwards `folder` holds the tokenizer, and every split's tokens and document starts, with an index.

    `progress` hears how much was read, at least every ten seconds while there is something to read, and what may be
    unwanted: a text that fills a split, characters that the tokenizer loses.
    Streams: beside 8 bytes for each document, in memory are the longest document (`corpus.longest`), or documents of
    250,000 bytes together, with about 150 bytes for each byte of their UTF-8 while they are tokenised, and what the
    tokenizer learns from (`BPE.sample`). Splits share no text. Killed before its end, it leaves a folder that
    `TokenFile.open` refuses. Raises ConfigurationError for an empty corpus, and for one that is too short for a row in
    every split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    for stale in [path for split in SPLITS for path in paths(folder, split)]:
        stale.unlink(missing_ok=True)
    read = Progress(progress, "read to share out the documents")
    splits = data.splits(read.add)
    read.finish()
    learnt = Progress(progress, "read for the tokenizer")
    tokenizer = data.tokenizer.build(_lessons(splits.documents(), learnt))
    learnt.finish()
    tokenizer.save(folder)
    progress(f"tokenizer: {tokenizer.size:,} tokens")
    number = "<u2" if tokenizer.size <= 1 << 16 else "<u4"
    losses = Losses(tokenizer)
    with ExitStack() as stack:
        used: list[Split] = [split for split in SPLITS if split == "validation" or split in data.shares.parts()]
        writers: dict[Split, SplitWriter] = {
            split: stack.enter_context(SplitWriter(folder, split, number)) for split in used
        }
        dropped = _pack(splits.documents(), tokenizer, writers, losses, Progress(progress, "tokenised"))
        held: dict[Split, SplitSummary] = {split: writer.finish() for split, writer in writers.items()}
    _require_rows(held, data.length)
    summary = Summary(
        tokenizer=tokenizer.digest,
        vocabulary=tokenizer.size,
        separator=tokenizer.separator,
        length=data.length,
        number=number,
        dropped=dropped,
        lost=losses.notable(),
        splits=held,
    )
    write_text(str(folder / INDEX), json.dumps(plain(summary), indent=1))
    for line in summary.lines():
        progress(line)
    return summary


@dataclass(frozen=True)
class TokenFile:
    """One split of a prepared folder, mapped into memory; documents[i] is where document i starts in tokens."""

    tokens: UInt[np.ndarray, " n"]
    documents: Int64[np.ndarray, " documents"]
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
        tokens, documents = mapped(folder, split, summary.number, summary.splits[split])
        return TokenFile(tokens, documents, summary.vocabulary, summary.separator)


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

    def to(self, device: torch.device) -> "Rows":
        """The same rows with their tensors on `device`."""
        return Rows(self.tokens.to(device), self.step, self.places.to(device), self.of)


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


def _count(tokens: TokenFile, length: int) -> int:
    count = len(tokens.tokens) // length
    if count == 0:
        raise ValueError(f"{len(tokens.tokens)} tokens do not fill one row of length {length}; prepare more text")
    return count


def _gather(tokens: TokenFile, rows: Int64[Tensor, " n"], length: int) -> Int64[Tensor, "n l"]:
    places = rows.numpy()[:, None] * length + np.arange(length)
    return torch.from_numpy(tokens.tokens[places].astype(np.int64))


def _lessons(documents: Iterator[tuple[Document, Split | None]], progress: Progress) -> Iterator[str]:
    """The texts of the train split."""
    for document, split in documents:
        progress.add(len(document.text))
        if split == "train":
            yield document.text


def _pack(
    documents: Iterator[tuple[Document, Split | None]],
    tokenizer: Tokenizer,
    writers: Mapping[Split, SplitWriter],
    losses: Losses,
    progress: Progress,
) -> int:
    """Afterwards the writers have written every document; how many documents were left out."""
    dropped = 0
    for batch in batched(documents, lambda item: item[0].text):
        kept: list[tuple[str, Split]] = [(document.text, split) for document, split in batch if split is not None]
        texts = [text for text, _ in kept]
        dropped += len(batch) - len(kept)
        for (text, split), ids in zip(kept, tokenizer.encode_documents(texts), strict=True):
            writers[split].write(text, ids)
        losses.look(texts)
        progress.add(sum(len(document.text) for document, _ in batch))
    progress.finish()
    return dropped


def _require_rows(summaries: dict[Split, SplitSummary], length: int) -> None:
    for split, held in summaries.items():
        if held.tokens < length:
            raise ConfigurationError(
                f"the {split} split has {held.documents} documents with {held.tokens} tokens, too few for one row of "
                f"length {length}; give more text, a larger share of it, smaller documents (corpus.cut), "
                "or set a smaller length"
            )
