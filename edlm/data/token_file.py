"""Token file: memory-mapped tokens of every split, with an index and a summary."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt

from edlm.config import ConfigurationError, NonNegative, Positive, config, parse, plain
from edlm.data.chat_template import ChatTemplate
from edlm.data.lost_characters import Lost
from edlm.data.repeats import Repeated
from edlm.data.splits import Split
from edlm.data.tokenizer import open_tokenizer
from edlm.storage import Sha256

INDEX = "index.json"
CHAT = "chat"  # in a model card, the chat template
Number = Literal["<u2", "<u4"]  # storage format of a token: unsigned, little-endian, 2 or 4 bytes
START = "<i8"  # storage format of a document's start


@config
class PartSummary:
    """What one part of a mixture contributes to a split."""

    documents: NonNegative = 0
    tokens: NonNegative = 0
    characters: NonNegative = 0


@config
class SplitSummary:
    """Content of one split; `bytes` are those of its text in UTF-8."""

    documents: NonNegative
    tokens: NonNegative
    characters: NonNegative
    bytes: NonNegative
    digests_sha256: Sha256
    """Digest of the file of the tokens' digests, one per block (`edlm.data.token_blocks`)."""
    documents_sha256: Sha256
    """Digest of the file of document starts."""
    repeated: tuple[Repeated, ...]
    """Texts of at least ten documents and more than 1 % of all, the most frequent first."""
    pairs: NonNegative
    """Documents that are pairs of a prompt and an answer."""
    cut: NonNegative
    """Pairs of more tokens than a row, whose ends were left out."""
    padding: NonNegative
    """Separators, among the tokens, that fill a row whose next pair did not fit into it."""
    given: NonNegative
    """Stretches of tokens that are not learnt: prompts and padding. Without any there is no file of them."""
    given_sha256: Sha256
    """Digest of the file of these stretches."""
    parts: dict[str, PartSummary]
    """Contribution of each part of a mixture, by its name; empty for any other corpus."""


@config
class Summary:
    """Summary of a prepared folder: the content of its index.json."""

    tokenizer: Sha256
    """Digest of tokenizer.json."""
    vocabulary: Positive
    separator: NonNegative | None
    length: Positive
    """Every split has at least one row of this many tokens."""
    number: Number
    """Storage format of a token, as a NumPy dtype string."""
    dropped: NonNegative
    """Documents left out because the validation corpus holds the same text."""
    lost: Lost | None
    """Characters that the tokenizer loses; None unless they exceed 1 %."""
    splits: dict[Split, SplitSummary]
    chat: ChatTemplate | None = None
    """Template by which conversations were written; None: there are none."""

    def facts(self) -> dict[str, Any]:
        """Return what the card of a model trained on the data says of it: how to write a conversation."""
        return {} if self.chat is None else {CHAT: plain(self.chat)}

    def lines(self) -> Iterator[str]:
        """Yield progress lines on the content of each split and on what of it may be unwanted."""
        for split, totals in self.splits.items():
            yield f"{split}: {totals.documents:,} documents, {totals.tokens:,} tokens, {totals.bytes:,} bytes of text"
            if totals.pairs:
                yield (
                    f"{split}: {totals.pairs:,} of its documents are pairs, {totals.cut:,} of them longer than a row "
                    f"and cut; {totals.padding / max(1, totals.tokens):.1%} of its tokens fill rows"
                )
            for name, part in totals.parts.items():
                yield (
                    f"{split}: {part.characters / max(1, totals.characters):.1%} of its characters and "
                    f"{part.tokens / max(1, totals.tokens):.1%} of its tokens are of {name}"
                )
            for text in totals.repeated:
                yield (
                    f"{split}: {text.documents:,} of its documents ({text.share:.1%}) are one text, which is in no "
                    f"other split: {text.beginning!r}; leave it out of the corpus if it is no text to learn"
                )
        if self.lost is not None:
            yield (
                f"the tokenizer loses {self.lost.share:.1%} of the characters (of {self.lost.sample:,} looked at), "
                f"most often {' '.join(self.lost.examples)}; tokenizer.kind bytes and bpe lose none"
            )


@dataclass(frozen=True)
class TokenFile:
    """One memory-mapped split of a prepared folder; documents[i] is the index in tokens where document i starts."""

    tokens: UInt[np.ndarray, " n"]
    documents: Int64[np.ndarray, " documents"]
    vocabulary: int
    separator: int | None
    given: Int64[np.ndarray, "n 2"] | None = None
    """First and end index of stretches of tokens that are not learnt, prompts and padding, in ascending order; None:
    all tokens are learnt."""

    @property
    def count(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def at(self, indices: Int64[np.ndarray, "b l"]) -> UInt[np.ndarray, "b l"]:
        """Return the tokens at these indices."""
        return self.tokens[indices]

    def loss_mask(self, indices: Int64[np.ndarray, "b l"]) -> Bool[np.ndarray, "b l"] | None:
        """Return which tokens at these indices count in a loss; None: all tokens of the file do."""
        return loss_mask(self.given, indices)

    @staticmethod
    def open(folder: Path, split: Split) -> "TokenFile":
        """Open the split; raise ValueError naming a file that is missing, of a wrong size, or of another tokenizer."""
        summary, held = split_summary(folder, split)
        tokens, documents = mapped(folder, split, summary.number, held)
        return TokenFile(tokens, documents, summary.vocabulary, summary.separator, mapped_given(folder, split, held))


def read_summary(folder: Path) -> Summary:
    """Return the index of a prepared folder; raise ValueError if it is missing or damaged."""
    path = folder / INDEX
    try:
        return parse(Summary, json.loads(path.read_text(encoding="utf-8")), source=str(path))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no prepared data (no {INDEX}); run the prepare stage to its end") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data again") from error
    except ConfigurationError as error:
        raise ValueError(f"{error}; if another version of edlm prepared the data, prepare them again") from error


def split_summary(folder: Path, split: Split) -> tuple[Summary, SplitSummary]:
    """Return the index of a prepared folder, and what it says of a split.

    Raise ValueError if there is none, no such split, or another tokenizer than the tokens were made with.
    """
    summary = read_summary(folder)
    if split not in summary.splits:
        raise ValueError(f"{folder} has no split {split!r}, only {', '.join(summary.splits)}; set shares.{split}")
    digest = open_tokenizer(folder).digest
    if digest != summary.tokenizer:
        raise ValueError(
            f"{folder}: the tokens were made with tokenizer {summary.tokenizer}, tokenizer.json is {digest}; "
            "prepare the data again"
        )
    return summary, summary.splits[split]


class SplitFiles(NamedTuple):
    """Paths of the files of a split."""

    tokens: Path
    documents: Path
    """Document starts."""
    given: Path
    """Stretches of tokens that are not learnt; missing if there are none."""
    digests: Path
    """SHA-256 of each block of the tokens."""


def paths(folder: Path, split: Split) -> SplitFiles:
    """Return the paths of a split's files."""
    return SplitFiles(*(folder / f"{split}{name}.bin" for name in ("", ".documents", ".given", ".digests")))


def loss_mask(
    given: Int64[np.ndarray, "n 2"] | None, indices: Int64[np.ndarray, "b l"]
) -> Bool[np.ndarray, "b l"] | None:
    """Return which tokens at these indices are in no stretch of given ones; None if there are no stretches."""
    if given is None:
        return None
    stretch = np.searchsorted(given[:, 0], indices, side="right") - 1
    return (stretch < 0) | (indices >= given[stretch, 1])


def mapped(
    folder: Path, split: Split, number: Number, held: SplitSummary
) -> tuple[UInt[np.ndarray, " n"], Int64[np.ndarray, " documents"]]:
    """Map a split's tokens and document starts; raise ValueError naming a file that is missing or of a wrong size."""
    files = paths(folder, split)
    return mapped_file(files.tokens, number, held.tokens), mapped_file(files.documents, START, held.documents)


def mapped_given(folder: Path, split: Split, held: SplitSummary) -> Int64[np.ndarray, "n 2"] | None:
    """Map the first and end index of a split's given tokens; None if it has none. Errors as in `mapped`."""
    return mapped_file(paths(folder, split).given, START, 2 * held.given).reshape(-1, 2) if held.given else None


def mapped_file(path: Path, number: str, count: int) -> np.ndarray:
    """Map a file of so many numbers; raise ValueError if it is missing or of a wrong size."""
    expected = count * np.dtype(number).itemsize
    if not path.is_file():
        raise ValueError(f"{path} is missing; prepare the data again")
    if (size := path.stat().st_size) != expected:
        raise ValueError(f"{path} has {size} bytes, its index says {expected}: it is damaged; prepare the data again")
    return np.memmap(path, dtype=number, mode="r", shape=(count,))
