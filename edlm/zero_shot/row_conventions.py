"""Row conventions: how the tokens of a corpus become the rows that a model is evaluated on.

Perplexities under different conventions are not comparable: how a row begins, and whether it may begin in the middle of
a document, change which of its tokens are easy.
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
    """A corpus as rows: blocks of equally long rows, and `held`, the number of the corpus's own tokens in them."""

    blocks: tuple[Int64[Tensor, "_ _"], ...]
    held: int


@config
class Wrapped:
    """The training convention: the packed stream cut into rows; tokens after the last whole row are not used."""

    kind: Literal["wrapped"] = "wrapped"

    def needed(self, length: int) -> int:
        """Return the number of corpus tokens that fill one row."""
        return length

    def cut(self, corpus: TokenFile, length: int, limit: int | None) -> Cut:
        """Return rows of `length` consecutive tokens, at most `limit` of them, evenly spaced."""
        rows = whole(corpus, length, limit or len(corpus.tokens))
        return Cut((rows,), rows.numel())

    def describe(self) -> str:
        """Return a description of the convention, to report with a number."""
        return "wrapped: documents run on from row to row, parted as in training"


@config
class Published:
    """The convention of the published tables (the loader of MDLM and EDLM; Sahoo 2024, Xu 2024).

    A row of L tokens is the separator, L - 2 tokens of the packed stream, and the separator again, because GPT-2's
    end-of-text token is both the beginning and the end of a row; all L count. Three things differ here: one tail is
    dropped, theirs is one per 1,000 documents; blank documents, such as WikiText's empty lines, are left out, where
    theirs become a separator each; and an autoregressive model is charged for the first token too, theirs is not.
    """

    kind: Literal["published"] = "published"

    def needed(self, length: int) -> int:
        """Return the number of corpus tokens that fill one row; raise ValueError if a row has no room for any."""
        if length < 3:
            raise ValueError(
                f"rows of length {length} have no position for text between two separators; set convention.kind wrapped"
            )
        return length - 2

    def cut(self, corpus: TokenFile, length: int, limit: int | None) -> Cut:
        """Return rows of `length` - 2 consecutive tokens between separators, at most `limit` of them, evenly spaced.

        Raise ConfigurationError if the tokenizer has no separator.
        """
        if corpus.separator is None:
            raise ConfigurationError(
                "convention.kind published needs a tokenizer with a separator, and this one has none; "
                "set convention.kind wrapped"
            )
        text = whole(corpus, length - 2, limit or len(corpus.tokens))
        return Cut((F.pad(text, (1, 1), value=corpus.separator),), text.numel())

    def describe(self) -> str:
        """Return a description of the convention, to report with a number."""
        return "published: as wrapped, but the first and the last token of every row are the separator, and count"


@config
class Documents:
    """Each document in its own rows, cut at the model's length, each row as long as its text: no token is lost.

    Blocks are ordered by row length; the second row of a long document is scored without its first.
    """

    kind: Literal["document"] = "document"

    def needed(self, length: int) -> int:
        """Return the number of corpus tokens that fill one row."""
        return 1

    def cut(self, corpus: TokenFile, length: int, limit: int | None) -> Cut:
        """Return rows of at most `length` tokens, at most `limit` of them, evenly spaced over the corpus."""
        ends = np.append(corpus.documents[1:], len(corpus.tokens))
        starts = np.concatenate([np.arange(*span, length) for span in zip(corpus.documents, ends, strict=True)])
        sizes = np.minimum(np.append(starts[1:], len(corpus.tokens)) - starts, length)
        n = min(limit or len(starts), len(starts))
        chosen = np.arange(n) * len(starts) // n
        starts, sizes = starts[chosen], sizes[chosen]
        blocks = [starts[sizes == size][:, None] + np.arange(size) for size in np.unique(sizes)]
        rows = tuple(torch.from_numpy(corpus.tokens[positions].astype(np.int64)) for positions in blocks)
        return Cut(rows, int(sizes.sum()))

    def describe(self) -> str:
        """Return a description of the convention, to report with a number."""
        return "document: each document, with its separator, in rows of its own"


ConventionConfig = Wrapped | Published | Documents
