"""Token files: a corpus cut into splits, tokenised and packed once, then read as rows in a reproducible order."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import pydantic

from edlm.config import Positive, config, plain
from edlm.data.batches import _require_rows
from edlm.data.corpus import CorpusConfig, Document
from edlm.data.lost_characters import Losses
from edlm.data.progress import ReadingProgress
from edlm.data.splits import SPLITS, Shares, SourceSplits, Split, TextSplits, divide
from edlm.data.synthetic import AbstractSource
from edlm.data.text_batches import batched
from edlm.data.token_file import INDEX, SplitSummary, SplitWriter, Summary, paths
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import Symbols, TokenizerConfig
from edlm.storage import write_text


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
    read = ReadingProgress(progress, "read to share out the documents")
    splits = data.splits(read.add)
    read.finish()
    learnt = ReadingProgress(progress, "read for the tokenizer")
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
        dropped = _pack(splits.documents(), tokenizer, writers, losses, ReadingProgress(progress, "tokenised"))
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


def _lessons(documents: Iterator[tuple[Document, Split | None]], progress: ReadingProgress) -> Iterator[str]:
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
    progress: ReadingProgress,
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
