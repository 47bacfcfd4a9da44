"""Quality of generated texts: likelihood under a judge, always with variety and repetition.

Likelihood alone can be gamed: a text that repeats itself is likely (see `edlm.evaluation.degeneration`).
Entropy, distinct n-grams and repetition depend on the length of the texts, distinct n-grams on their number too:
compare them only with those of texts of the same number and length.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from edlm.evaluation.judge_models import Judge, whole_texts

DISTINCT = (1, 2, 3, 4)
REPEATED = 8  # tokens in an n-gram that counts as a repetition


@dataclass(frozen=True)
class Average:
    """A mean over texts and its standard error; nan for a single text."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Quality:
    """Statistics of b texts; `tokens` is each text's length in the generator's tokens."""

    judge: str
    retokenised: bool
    """Whether the judge read the texts in its own tokens: nats are of the text, not of the generator's tokens."""
    row: int
    """Tokens per row; a text is a prefix of its row or all of it."""
    nats: Float64[Tensor, " b"]
    """-log p of each text under the judge."""
    tokens: Int64[Tensor, " b"]
    characters: Int64[Tensor, " b"]
    judge_tokens: Int64[Tensor, " b"]
    unigram_entropy: Float64[Tensor, " b"]
    """Entropy of each text's own token frequencies, in nats."""
    repetition: Float64[Tensor, " b"]
    """Share of each text's tokens in an 8-gram that occurred earlier in the same text."""
    distinct: tuple[float, ...]
    """Distinct n-grams divided by all n-grams of all texts, for n = 1 to 4; distinct[n - 1] is that of n."""
    features: Float[Tensor, "b h"]
    """The judge's features, for the divergence from other texts."""

    @property
    def nats_per_token(self) -> Average:
        """Return total nats over total tokens of the generator, whatever the judge's tokens."""
        return _ratio(self.nats, self.tokens)

    @property
    def nats_per_character(self) -> Average:
        return _ratio(self.nats, self.characters)

    @property
    def generative_perplexity(self) -> Average:
        """Return exp of the whole set's nats per token, not a mean of exponentials over texts; first-order error."""
        nats = self.nats_per_token
        return Average(math.exp(nats.mean), math.exp(nats.mean) * nats.standard_error)

    @property
    def entropy_nats(self) -> Average:
        return average(self.unigram_entropy)

    @property
    def repeated_share(self) -> Average:
        return average(self.repetition)


def assess(texts: Int[Tensor, "b l"], judge: Judge, lengths: Int[Tensor, " b"] | None = None) -> Quality:
    """Compute the quality of the first `lengths` tokens of each text (all of them by default), under one judge.

    Raise ValueError for tokens outside the texts' vocabulary, leftover masks included, for lengths outside the row, and
    if no text has the 4 tokens of the longest n-gram.
    """
    lengths = whole_texts(texts) if lengths is None else lengths.cpu()
    if texts.numel() == 0 or int(lengths.max()) < max(DISTINCT):
        raise ValueError(
            f"texts to judge have shape {tuple(texts.shape)}; at least one text of {max(DISTINCT)} tokens is needed"
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > texts.shape[1]:
        raise ValueError(f"lengths of {int(lengths.min())} to {int(lengths.max())} tokens are not within 1 and the row")
    texts = texts.cpu()
    reading = judge.read(texts, lengths)
    return Quality(
        judge=judge.name,
        retokenised=judge.retokenised,
        row=texts.shape[1],
        nats=reading.nats,
        tokens=lengths,
        characters=reading.characters,
        judge_tokens=reading.judge_tokens,
        unigram_entropy=unigram_entropy(texts, lengths),
        repetition=_repetition(texts, lengths),
        distinct=tuple(_distinct(texts, lengths, n) for n in DISTINCT),
        features=reading.features,
    )


def average(values: Float64[Tensor, " b"]) -> Average:
    """Return the mean of independent values, with its standard error."""
    return _ratio(values, torch.ones_like(values))


def unigram_entropy(texts: Int[Tensor, "b l"], lengths: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Return -sum p log p in nats over the tokens of each text, p being their frequencies in it."""
    _, keys = _ngrams(texts, lengths, 1)
    distinct_keys, counts = keys.unique(return_counts=True)
    row = distinct_keys // texts.numel()
    p = counts.double() / lengths[row]
    return torch.zeros(len(texts), dtype=torch.float64).index_add(0, row, -p * p.log())


def _ratio(numerator: Tensor, denominator: Tensor) -> Average:
    """Return sum over sum; its error is by linearisation, that of the mean if the denominators are equal."""
    n, total = len(numerator), denominator.double().sum()
    mean = (numerator.sum() / total).item()
    if n < 2:
        return Average(mean, math.nan)
    residual = numerator - mean * denominator
    return Average(mean, (math.sqrt(n / (n - 1)) * residual.square().sum().sqrt() / total).item())


def _distinct(texts: Int[Tensor, "b l"], lengths: Int[Tensor, " b"], n: int) -> float:
    """Return the share of distinct n-grams over all texts together: an n-gram shared by two texts counts once."""
    _, keys = _ngrams(texts, lengths, n)
    return (keys % texts.numel()).unique().numel() / keys.numel()


def _repetition(texts: Int[Tensor, "b l"], lengths: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Return the share of tokens in a repeated n-gram, each counted once (Rae et al. 2021, table A1, in tokens).

    Only later occurrences are repetitions, and they may overlap the earlier one.
    """
    begins, keys = _ngrams(texts, lengths, REPEATED)
    # After a stable sort, all but the first of equal keys are later in their text.
    order = keys.argsort(stable=True)
    repeats = torch.zeros_like(keys, dtype=torch.bool)
    repeats[order[1:]] = keys[order][1:] == keys[order][:-1]
    rows, starts = (indices[repeats] for indices in begins.nonzero(as_tuple=True))
    repeated = torch.zeros(texts.shape, dtype=torch.bool)
    for offset in range(REPEATED):
        repeated[rows, starts + offset] = True
    return repeated.double().sum(dim=1) / lengths


def _ngrams(
    texts: Int[Tensor, "b l"], lengths: Int[Tensor, " b"], n: int
) -> tuple[Bool[Tensor, "b l"], Int64[Tensor, " g"]]:
    """Return where the n-grams of the texts begin, and their keys in reading order: row x (b l) + a number below (b l).

    Equal n-grams have equal numbers; the keys of two texts differ.
    """
    _, tokens = texts.unique(return_inverse=True)
    numbers = tokens
    for offset in range(1, n):  # an n-gram is a shorter n-gram and one more token
        extended = numbers[:, :-1] * texts.numel() + tokens[:, offset:]
        _, numbers = extended.unique(return_inverse=True)
    begins = torch.arange(texts.shape[1]) + n <= lengths[:, None]
    row = torch.arange(len(texts))[:, None] * texts.numel()
    return begins, (row + numbers)[begins[:, : numbers.shape[1]]]
