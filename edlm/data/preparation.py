"""Preparation of the data: a corpus is split, tokenized and packed into token files, once."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from edlm.config import ConfigurationError, Positive, config, plain
from edlm.data.chat_template import ChatTemplate
from edlm.data.corpus import CorpusConfig, Document, holds_conversations, with_fields
from edlm.data.encoded_documents import DocumentEncoder, EncodedBatch
from edlm.data.lost_characters import Losses
from edlm.data.packing import SplitWriter
from edlm.data.progress import ReadingProgress
from edlm.data.shards import Shards
from edlm.data.splits import SPLITS, Shares, SourceSplits, Split, SplitAssignment, TextSplits, divide
from edlm.data.synthetic import AbstractSource
from edlm.data.text_batches import batched
from edlm.data.token_file import INDEX, SplitSummary, Summary, paths, read_summary
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import Characters, HuggingFaceTokenizer, Symbols, TokenizerConfig
from edlm.storage import write_text


@config
class Data:
    """Data that the models are trained and evaluated on."""

    corpus: Annotated[CorpusConfig, pydantic.Field(discriminator="kind")]
    """Text, or a synthetic source, that is divided among the splits."""
    validation: Annotated[CorpusConfig | None, pydantic.Field(discriminator="kind")] = None
    """Separate corpus for validation; its texts, copies included, are left out of train and judge."""
    tokenizer: Annotated[TokenizerConfig, pydantic.Field(discriminator="kind")]
    """Tokens of the text; a trained tokenizer reads the train split only."""
    length: Positive
    """Tokens per row."""
    shares: Shares
    """Shares of the corpus for validation and for the judge; the rest is for training."""
    attention: Literal["across_documents", "within_documents"] = "across_documents"
    """What a token of a row attends to in training: the whole row, or its own document. Within documents each document
    of a row is a text of its own (of an autoregressive model, one after BOS), whose ends the denoiser is told at every
    noise level. No influence on the prepared data, the evaluation and the sampler, which read a row as one text."""

    def __post_init__(self) -> None:
        if self.validation is None and self.shares.validation == 0:
            raise ValueError("shares.validation is 0; give validation a share, or a corpus of its own")
        if self.validation is not None and self.shares.validation > 0:
            raise ValueError(
                f"shares.validation is {self.shares.validation}, but validation has a corpus of its own; set it to 0"
            )
        self._check_source()
        self._check_conversations()
        if not isinstance(self.tokenizer, Characters | Symbols):
            return
        if self.attention == "within_documents":
            raise ValueError(
                f"attention is within_documents, but tokenizer.kind {self.tokenizer.kind} has no separator to tell "
                "where a document ends; leave attention at across_documents, or take another tokenizer"
            )
        if any(part.prompts is not None for corpus in (self.corpus, self.validation) for part in with_fields(corpus)):
            raise ValueError(
                f"corpus.prompts needs a separator to tell where an answer ends, and tokenizer.kind "
                f"{self.tokenizer.kind} has none; take another tokenizer"
            )

    def attention_separator(self, prepared: Path) -> int | None:
        """Return the token that bounds attention in rows of the prepared folder; None across documents."""
        return read_summary(prepared).separator if self.attention == "within_documents" else None

    def _check_source(self) -> None:
        """Raise ValueError unless a source and `Symbols` go together, without `validation`, at one sequence per row."""
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

    def _check_conversations(self) -> None:
        """Raise ValueError for conversations without a chat template, and where the ends of their turns would count."""
        if not (holds_conversations(self.corpus) or holds_conversations(self.validation)):
            return
        if not isinstance(self.tokenizer, HuggingFaceTokenizer):
            raise ValueError(
                f"corpus.messages_field needs a chat template, and tokenizer.kind {self.tokenizer.kind} has none; take "
                "a tokenizer that comes with one (kind: huggingface), or pairs of plain texts (corpus.prompts)"
            )
        if self.attention == "within_documents":
            raise ValueError(
                "attention is within_documents, and a conversation (corpus.messages_field) may hold separators, at the "
                "ends of its turns; leave attention at across_documents"
            )

    def chat_template(self) -> ChatTemplate | None:
        """Return the template that writes conversations; None if no corpus holds any.

        Raise ConfigurationError if the tokenizer comes without one.
        """
        if not (holds_conversations(self.corpus) or holds_conversations(self.validation)):
            return None
        assert isinstance(self.tokenizer, HuggingFaceTokenizer)
        return self.tokenizer.chat_template()

    def version(self) -> list[str]:
        """Return versions of the corpora and of an existing tokenizer, which change when files at their paths do."""
        read = [self.tokenizer] if isinstance(self.tokenizer, HuggingFaceTokenizer) else []
        return [part.version() for part in (self.corpus, self.validation, *read) if part is not None]

    def splits(self, on_characters: Callable[[int], None]) -> TextSplits | SourceSplits:
        """Return the split of every document; reads a part of the corpus, reporting to `on_characters`."""
        return divide(self.corpus, self.validation, self.shares, on_characters)


def prepare(data: Data, folder: Path, progress: Callable[[str], None], shards: Shards | None = None) -> Summary:
    """Write the tokenizer, every split's tokens and document starts, and an index to `folder`; return the index.

    `progress` receives the amount read, at least every ten seconds, even while only blank rows are, and warnings: a
    text that recurs in many documents of a split, characters that the tokenizer loses.
    The corpus is streamed. Memory holds 8 bytes per document; the longest document (`corpus.longest`), or documents of
    250,000 bytes together, at about 150 bytes per byte of their UTF-8 while they are tokenized; and the distinct words
    of the tokenizer's training text (`BPE.sample`). A corpus of kind huggingface adds what `datasets` reads at once: a
    parquet row group or a line, however large. Splits share no text, except parts of streamed documents
    (`TextSplits`). If killed before its end, it leaves a folder that `TokenFile.open` rejects. With `shards`, text is
    encoded in parts, perhaps by several tasks, and a killed preparation reuses those that are committed; the files are
    the same without. Raises ConfigurationError for an empty corpus, and for one too short for a row in every split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    for stale in [path for split in SPLITS for path in paths(folder, split)]:
        stale.unlink(missing_ok=True)
    with ReadingProgress(progress, "read to share out the documents") as reading:
        splits = data.splits(reading.add)
    if isinstance(splits, TextSplits):
        splits.require_a_text_for_each()
    with ReadingProgress(progress, "read for the tokenizer") as reading:
        tokenizer = data.tokenizer.build(_training_texts(splits.documents(), reading), progress)
    tokenizer.save(folder)
    progress(f"tokenizer: {tokenizer.size:,} tokens")
    if (chat := data.chat_template()) is not None:
        chat.examine(tokenizer)
    number = "<u2" if tokenizer.size <= 1 << 16 else "<u4"
    with ExitStack() as stack:
        used_splits: list[Split] = [split for split in SPLITS if split == "validation" or split in data.shares.parts()]
        writers: dict[Split, SplitWriter] = {
            split: stack.enter_context(SplitWriter(folder, split, number, data.length, tokenizer.separator))
            for split in used_splits
        }
        reading = stack.enter_context(ReadingProgress(progress, "tokenised"))
        encoded = partial(_encoded, tokenizer, chat, shards)
        dropped, losses = _write_documents(splits, encoded, writers, reading, progress)
        summaries: dict[Split, SplitSummary] = {split: writer.finish() for split, writer in writers.items()}
    _require_rows(summaries, data.length)
    summary = Summary(
        tokenizer=tokenizer.digest,
        vocabulary=tokenizer.size,
        separator=tokenizer.separator,
        length=data.length,
        number=number,
        dropped=dropped,
        lost=losses.notable(),
        splits=summaries,
        chat=chat,
    )
    write_text(str(folder / INDEX), json.dumps(plain(summary), indent=1))
    for line in summary.lines():
        progress(line)
    return summary


def _training_texts(documents: Iterator[tuple[Document, Split | None]], progress: ReadingProgress) -> Iterator[str]:
    """Yield the texts of the train split."""
    for document, split in documents:
        progress.add(len(document.text))
        if split == "train":
            yield document.text


def _encoded(
    tokenizer: Tokenizer, chat: ChatTemplate | None, shards: Shards | None, assignment: SplitAssignment
) -> Iterator[tuple[EncodedBatch, bool]]:
    """Yield the encoded documents in their order, and whether an earlier preparation has encoded them.

    Parts of a corpus have batches of their own in any process, so that the same characters are inspected for losses.
    """
    parts, batches = assignment.parts(), batched(assignment.documents(), lambda document: document.text)
    if parts is not None:
        batches = chain.from_iterable(part.batches() for part in parts)
    if shards is not None:
        yield from shards.encoded(parts if parts and shards.one_machine else batches, tokenizer, chat)
        return
    for batch in map(DocumentEncoder(tokenizer, chat), batches):
        yield batch, False


def _write_documents(
    splits: TextSplits | SourceSplits,
    encoded: Callable[[SplitAssignment], Iterator[tuple[EncodedBatch, bool]]],
    writers: Mapping[Split, SplitWriter],
    reading: ReadingProgress,
    progress: Callable[[str], None],
) -> tuple[int, Losses]:
    """Write every document with the writer of its split; return how many were left out, and the lost characters."""
    assignment, losses, reused_characters = SplitAssignment(splits, reading.add), Losses(), 0
    for batch, reused in encoded(assignment):
        for document in batch.documents:
            writers[assignment.split(document)].write(document)
        losses.add(batch.losses)
        reused_characters += batch.characters if reused else 0
        reading.add(batch.characters, 0 if reused else sum(document.bytes for document in batch.documents))
    assignment.finish()
    if reused_characters:
        progress(f"{reused_characters:,} characters were tokenised already")
    return assignment.dropped, losses


def _require_rows(summaries: Mapping[Split, SplitSummary], length: int) -> None:
    """Raise ConfigurationError if a split has too few tokens for one row."""
    for split, summary in summaries.items():
        if summary.tokens < length:
            raise ConfigurationError(
                f"the {split} split has {summary.documents} documents with {summary.tokens} tokens, too few for one "
                f"row of length {length}; give more text, a larger share of it, smaller documents (corpus.cut), "
                "or set a smaller length"
            )
