"""Zero-shot likelihood of a trained model on a corpus that it never saw.

Numbers are means over the whole corpus: perplexity is exp of the corpus's nats per token, never a mean of the rows'
perplexities. Nats per token depend on the tokenizer, so they come with bits per byte and word perplexity, which do not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pydantic
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from edlm.config import ConfigurationError, Positive, config
from edlm.data.corpus import CorpusConfig, holds_conversations
from edlm.data.text_batches import batched
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer import Tokenizer
from edlm.likelihood.estimate import Estimate
from edlm.rng import Purpose, seeds
from edlm.zero_shot.detokenizers import DetokenizerConfig, Unchanged
from edlm.zero_shot.row_conventions import ConventionConfig, Cut, Wrapped

Nll = Callable[[Int64[Tensor, "n l"], int], Estimate]
"""Nats of each row, or a bound on them; the integer is the noise seed, different at every call."""


@dataclass(frozen=True)
class Counts:
    """Size of a corpus: words and lines of the text as published, the rest of the detokenised text that is scored."""

    documents: int
    words: int
    """Separated by white space."""
    lines: int
    """Line ends; the end of a document counts as one."""
    characters: int
    bytes: int
    """UTF-8 bytes."""
    tokens: int
    """Includes one separator per document."""


@dataclass(frozen=True)
class Passages:
    """A corpus as rows for one model, with its counts and the rules that produced it."""

    name: str
    rules: str
    """Description of the detokeniser, the convention and the choice of rows."""
    cut: Cut
    counts: Counts


@config
class ZeroShot:
    """A corpus to score a trained model on, and how its text becomes rows."""

    name: str
    """Name of the corpus in tables."""
    corpus: Annotated[CorpusConfig, pydantic.Field(discriminator="kind")]
    """Text to score."""
    detokenizer: Annotated[DetokenizerConfig, pydantic.Field(discriminator="kind")] = Unchanged()
    """Restores running text from the corpus's spacing before it is tokenised."""
    convention: Annotated[ConventionConfig, pydantic.Field(discriminator="kind")] = Wrapped()
    """How the tokens are cut into rows. Perplexities of different conventions are not comparable."""
    limit: Positive | None = None
    """Maximum number of rows, evenly spaced over the corpus; None: all rows."""

    def __post_init__(self) -> None:
        if holds_conversations(self.corpus):
            raise ConfigurationError(
                f"zero_shot: corpus {self.name!r} has a messages_field, and texts are scored; name a field of text"
            )

    def passages(self, tokenizer: Tokenizer, length: int) -> Passages:
        """Return the rows, of `length` tokens or as the convention says, in the ids of `tokenizer`.

        Text is read as a stream; the tokens are held in memory, 4 bytes each. Raise ConfigurationError for a corpus
        without text, and ValueError if it does not fill one row.
        """
        tokens, counts = self._read(tokenizer)
        if counts.tokens < self.convention.needed(length):
            raise ValueError(
                f"{self.name}: {counts.tokens:,} tokens in {counts.documents:,} documents do not fill one row of "
                f"length {length}; give more text, a model of a smaller length, or convention.kind document"
            )
        return Passages(self.name, self._rules(length), self.convention.cut(tokens, length, self.limit), counts)

    def _rules(self, length: int) -> str:
        selection = "" if self.limit is None else f", at most {self.limit:,} of them, evenly spaced"
        return f"detokeniser {self.detokenizer.kind}; rows of {length} tokens{selection}; {self.convention.describe()}"

    def _read(self, tokenizer: Tokenizer) -> tuple[TokenFile, Counts]:
        encoded: list[Int32[np.ndarray, " l"]] = []
        words = lines = characters = byte_count = 0
        for documents in batched(self.corpus.documents(), lambda document: document.text):
            texts = [document.text for document in documents]
            restored = [self.detokenizer.detokenize(text) for text in texts]
            encoded += tokenizer.encode_documents(restored)
            words += sum(len(text.split()) for text in texts)
            lines += sum(text.count("\n") + (not text.endswith("\n")) for text in texts)
            characters += sum(len(text) for text in restored)
            byte_count += sum(len(text.encode("utf-8")) for text in restored)
        if not encoded:
            raise ConfigurationError(f"{self.name}: the corpus holds no text; check its paths, split and text_field")
        ends = np.cumsum([len(ids) for ids in encoded], dtype=np.int64)
        tokens = np.concatenate(encoded).astype("<u4")
        counts = Counts(len(encoded), words, lines, characters, byte_count, len(tokens))
        return TokenFile(tokens, np.append(0, ends[:-1]), tokenizer.size, tokenizer.separator), counts


@dataclass(frozen=True)
class ZeroShotResult:
    """Likelihood of a corpus under a model; if the likelihood is a bound, so is every number here."""

    name: str
    rules: str
    estimate: Estimate
    """Nats of each row."""
    lengths: Int64[Tensor, " n"]
    """Tokens of each row, all of them scored."""
    held: int
    """The corpus's own tokens among them, without those that a convention puts at the ends of rows."""
    counts: Counts

    @property
    def tokens(self) -> int:
        """Return the number of tokens scored."""
        return int(self.lengths.sum())

    @property
    def share(self) -> float:
        """Return the fraction of the corpus's tokens that were scored; words and bytes are shared out in proportion."""
        return self.held / self.counts.tokens

    @property
    def nats(self) -> float:
        """Return the total nats of all rows."""
        return self.estimate.values.sum().item()

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def standard_error(self) -> float:
        """Return the error of nats per token over rows weighted by length (a ratio of means); nan for a single row."""
        n = len(self.lengths)
        if n == 1:
            return math.nan
        residual = self.estimate.values - self.nats_per_token * self.lengths.double()
        return math.sqrt(residual.square().sum().item() * n / (n - 1)) / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / (math.log(2) * self.share * self.counts.bytes)

    @property
    def word_perplexity(self) -> float:
        """Return the perplexity per word as published, each line end counting as one: the usual one of WikiText."""
        return math.exp(self.nats / (self.share * (self.counts.words + self.counts.lines)))

    def describe(self) -> str:
        """Return the numbers and how they were made, in one line."""
        return (
            f"{self.name}: perplexity {self.perplexity:.2f} ({self.nats_per_token:.4f} +- {self.standard_error:.4f} "
            f"nats per token), {self.bits_per_byte:.4f} bits per byte, word perplexity {self.word_perplexity:.2f}; "
            f"{len(self.lengths):,} rows, {self.tokens:,} tokens, {self.share:.1%} of the corpus ({self.rules})"
        )


def score(passages: Passages, nll: Nll, seed: int, batch: int) -> ZeroShotResult:
    """Score the passages, `batch` rows at a time.

    The noise seed of a batch depends only on `seed` and the batch's index, so that two models scored with the same seed
    and batch size see the same noise, and no two batches share theirs. Raise ValueError at the first nan.
    """
    batches = [rows for block in passages.cut.blocks for rows in block.split(batch)]
    keys = seeds(seed, 0, torch.arange(len(batches)), Purpose.ROWS).tolist()
    values, draws = [], []
    for rows, key in zip(batches, keys, strict=True):
        estimate = nll(rows, key)
        assert len(estimate.values) == len(rows), f"{len(estimate.values)} values for {len(rows)} rows"
        if estimate.values.isnan().any():
            raise ValueError(f"{passages.name}: the likelihood of row {sum(map(len, values))} or a later one is nan")
        values.append(estimate.values.double().cpu())
        draws.append(estimate.draws)
    return ZeroShotResult(
        name=passages.name,
        rules=passages.rules,
        estimate=Estimate(torch.cat(values), min(draws)),
        lengths=torch.cat([torch.full((len(block),), block.shape[1]) for block in passages.cut.blocks]),
        held=passages.cut.held,
        counts=passages.counts,
    )
