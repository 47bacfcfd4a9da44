"""Quality of generated text under an autoregressive judge that was trained on other documents.

Generative perplexity alone can be gamed by repeating likely words, so it never leaves this file without the entropy of
the same texts and their distinct n-grams.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from edlm.autoregressive import AutoregressiveModel

NGRAM = 4


@dataclass(frozen=True)
class Quality:
    """Per-text values [b]: means and standard errors are over texts."""

    nll_nats_per_token: Float64[Tensor, " b"]
    unigram_entropy_nats: Float64[Tensor, " b"]
    distinct_ngrams: float
    """Distinct 4-grams over all 4-grams of all texts, between 0 and 1."""

    @property
    def generative_perplexity(self) -> float:
        """exp of the mean nats per token over the whole set (not a mean of exponentials over texts)."""
        return math.exp(self.nll_nats_per_token.mean().item())

    @property
    def nll_standard_error(self) -> float:
        return _standard_error(self.nll_nats_per_token)

    @property
    def entropy_nats(self) -> float:
        return self.unigram_entropy_nats.mean().item()

    @property
    def entropy_standard_error(self) -> float:
        return _standard_error(self.unigram_entropy_nats)


@torch.no_grad()
def assess(texts: Int[Tensor, "b l"], judge: AutoregressiveModel) -> Quality:
    """The quality of token sequences in the judge's own vocabulary.

    Raises ValueError for tokens that the judge does not know, masks left over among them.
    """
    if texts.numel() == 0 or texts.shape[1] < NGRAM:
        raise ValueError(
            f"texts to judge have shape {tuple(texts.shape)}; at least one text of {NGRAM} tokens is needed"
        )
    if int(texts.max()) >= judge.vocabulary or int(texts.min()) < 0:
        raise ValueError(f"token {int(texts.max())} is not in the judge's vocabulary of {judge.vocabulary}")
    nll = -judge.log_p(texts).double().mean(dim=-1)
    return Quality(nll.cpu(), _unigram_entropy(texts, judge.vocabulary).cpu(), _distinct(texts))


def _unigram_entropy(texts: Int[Tensor, "b l"], vocabulary: int) -> Float64[Tensor, " b"]:
    """Entropy in nats of each text's own token frequencies."""
    counts = torch.zeros(len(texts), vocabulary, dtype=torch.float64, device=texts.device)
    counts.scatter_add_(1, texts, torch.ones_like(texts, dtype=torch.float64))
    frequency = counts / texts.shape[1]
    return -torch.special.xlogy(frequency, frequency).sum(dim=-1)


def _distinct(texts: Int[Tensor, "b l"]) -> float:
    ngrams = texts.unfold(1, NGRAM, 1).reshape(-1, NGRAM)
    return ngrams.unique(dim=0).shape[0] / ngrams.shape[0]


def _standard_error(values: Tensor) -> float:
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
