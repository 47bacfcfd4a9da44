"""Row conventions: how the tokens of a corpus become the rows that a model is measured on.

Perplexities under two conventions are two numbers. What a row begins with, and whether it may begin in the middle of a
document, change what is easy in it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from edlm.config import ConfigurationError, config
from edlm.data.batches import whole
from edlm.data.token_file import TokenFile


@dataclass(frozen=True)
class Cut:
    """A corpus as rows: blocks of rows of one length each, and how many of the corpus's own tokens stand in them."""

    blocks: tuple[Int64[Tensor, "_ _"], ...]
    held: int


@config
class Wrapped:
    """The convention of our training: the packed stream cut into rows; the tokens behind the last row are not used."""

    kind: Literal["wrapped"] = "wrapped"

    def needed(self, length: int) -> int:
        """The tokens of a corpus that fill one row."""
        return length

    def cut(self, corpus: TokenFile, length: int, limit: int | None) -> Cut:
        """Rows of `length` consecutive tokens, at most `limit` of them, evenly spaced."""
        rows = whole(corpus, length, limit or len(corpus.tokens))
        return Cut((rows,), rows.numel())

    def describe(self) -> str:
        """The convention, to stand beside a number."""
        return "wrapped: documents run on from row to row, parted as in training"


@config
class Published:
    """The convention of the published tables (the loader of MDLM and EDLM; Sahoo 2024, Xu 2024).

    A row of L tokens is the separator, L - 2 tokens of the packed stream, and the separator again, as GPT-2's
    end-of-text token is both their beginning and end of a row; all L count. Three things differ here: one tail is
    dropped, theirs is one in every 1,000 documents; blank documents, such as WikiText's empty lines, are left out,
    theirs is a separator each; and an autoregressive model is charged for the first token too, theirs is not.
    """

    kind: Literal["published"] = "published"

    def needed(self, length: int) -> int:
        """The tokens of a corpus that fill one row; ValueError where a row has no place for any."""
        if length < 3:
            raise ValueError(
                f"rows of length {length} have no place for text between two separators; set convention.kind wrapped"
            )
        return length - 2

    def cut(self, corpus: TokenFile, length: int, limit: int | None) -> Cut:
        """Rows of `length` - 2 consecutive tokens between separators, at most `limit` of them, evenly spaced.

        Raises ConfigurationError where the tokenizer has no separator.
        """
        if corpus.separator is None:
            raise ConfigurationError(
                "convention.kind published needs a tokenizer with a separator, and this one has none; "
                "set convention.kind wrapped"
            )
        text = whole(corpus, length - 2, limit or len(corpus.tokens))
        return Cut((F.pad(text, (1, 1), value=corpus.separator),), text.numel())

    def describe(self) -> str:
        """The convention, to stand beside a number."""
        return "published: as wrapped, but the first and the last token of every row are the separator, and count"


@config
class Documents:
    """Each document in rows of its own, cut at the model's length, each row as long as its text: nothing is lost.

    The blocks come by length; the second row of a long document stands without its first.
    """

    kind: Literal["document"] = "document"

    def needed(self, length: int) -> int:
        """The tokens of a corpus that fill one row."""
        return 1

    def cut(self, corpus: TokenFile, length: int, limit: int | None) -> Cut:
        """Rows of at most `length` tokens, at most `limit` of them, evenly spaced over the corpus."""
        ends = np.append(corpus.documents[1:], len(corpus.tokens))
        starts = np.concatenate([np.arange(*span, length) for span in zip(corpus.documents, ends, strict=True)])
        sizes = np.minimum(np.append(starts[1:], len(corpus.tokens)) - starts, length)
        n = min(limit or len(starts), len(starts))
        chosen = np.arange(n) * len(starts) // n
        starts, sizes = starts[chosen], sizes[chosen]
        blocks = [starts[sizes == size][:, None] + np.arange(size) for size in np.unique(sizes)]
        rows = tuple(torch.from_numpy(corpus.tokens[places].astype(np.int64)) for places in blocks)
        return Cut(rows, int(sizes.sum()))

    def describe(self) -> str:
        """The convention, to stand beside a number."""
        return "document: each document, with its separator, in rows of its own"


ConventionConfig = Wrapped | Published | Documents
