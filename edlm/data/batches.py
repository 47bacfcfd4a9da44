"""Batches: rows of tokens as a pure function of (seed, step), sliced by rank."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from edlm.config import ConfigurationError
from edlm.data.shuffle import permuted
from edlm.data.splits import Split
from edlm.data.token_file import SplitSummary, TokenFile


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


def _require_rows(summaries: dict[Split, SplitSummary], length: int) -> None:
    for split, held in summaries.items():
        if held.tokens < length:
            raise ConfigurationError(
                f"the {split} split has {held.documents} documents with {held.tokens} tokens, too few for one row of "
                f"length {length}; give more text, a larger share of it, smaller documents (corpus.cut), "
                "or set a smaller length"
            )
