"""Training batches: rows of tokens as a pure function of (seed, step), sliced by rank."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from edlm.data.shuffle import permuted
from edlm.data.stored_split import SplitTokens
from edlm.device_copies import sent


@dataclass(frozen=True)
class Rows:
    """Rows of one step, with their indices in the global batch of all workers and accumulation steps."""

    tokens: Int64[Tensor, "b l"]
    step: int
    batch_index: Int64[Tensor, " b"]
    global_batch_size: int
    loss_mask: Bool[Tensor, "b l"] | None = None
    """Tokens that may be masked and count in a loss; the others, prompts and padding, are given. None: all."""
    host: "Rows | None" = None
    """The same rows on the host; None where these are on the host themselves."""

    @property
    def on_host(self) -> "Rows":
        """Return the same rows on the host, where noise is drawn so that a device need not be waited for."""
        return self if self.host is None else self.host

    def to(self, device: torch.device) -> "Rows":
        """Return the same rows with their tensors on `device`."""
        if device.type == self.tokens.device.type:
            return self
        given = [] if self.loss_mask is None else [self.loss_mask]
        tokens, batch_index, *loss_mask = sent([self.tokens, self.batch_index, *given], device)
        return replace(
            self, tokens=tokens, batch_index=batch_index, loss_mask=loss_mask[0] if loss_mask else None, host=self
        )

    def slice(self, start: int, stop: int) -> "Rows":
        """Return rows start..stop-1 of these."""
        part = slice(start, stop)
        loss_mask = None if self.loss_mask is None else self.loss_mask[part]
        host = None if self.host is None else self.host.slice(start, stop)
        return replace(
            self, tokens=self.tokens[part], batch_index=self.batch_index[part], loss_mask=loss_mask, host=host
        )

    def loss_token_counts(self) -> Int64[Tensor, " b"] | int:
        """Return the number of tokens of each row that count in a loss, at least 1; the row length if all do."""
        return self.tokens.shape[1] if self.loss_mask is None else self.loss_mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Batches:
    """Training order: each epoch is a different permutation of all rows of `length` tokens.

    A row is `length` consecutive tokens of the packed stream; the tokens after the last complete row are not used.
    """

    tokens: SplitTokens
    length: int
    batch: int
    """Rows per step, over all workers."""
    seed: int

    def __post_init__(self) -> None:
        _count(self.tokens, self.length)

    def rows(self, step: int, start: int, stop: int) -> Rows:
        """Return rows start..stop-1 of the batch of `step`: a function of (seed, step, row index) alone."""
        if not 0 <= start <= stop <= self.batch:
            raise ValueError(f"batch indices {start} to {stop} are not within a batch of {self.batch} rows")
        batch_index = torch.arange(start, stop)
        count = _count(self.tokens, self.length)
        ordinals = batch_index + step * self.batch
        permuted_rows = permuted(ordinals % count, count, self.seed, ordinals // count)
        indices = _indices(permuted_rows, self.length)
        return Rows(_gather(self.tokens, indices), step, batch_index, self.batch, _loss_mask(self.tokens, indices))


def whole(tokens: SplitTokens, length: int, limit: int) -> Int64[Tensor, "n l"]:
    """Return at most `limit` rows of `length` tokens, evenly spaced over the split, to evaluate a model on."""
    return _gather(tokens, _evenly(tokens, length, limit))


def whole_rows(tokens: SplitTokens, length: int, limit: int, step: int) -> Rows:
    """Return the rows of `whole` as those of one `step`, with their loss mask."""
    indices = _evenly(tokens, length, limit)
    return Rows(_gather(tokens, indices), step, torch.arange(len(indices)), len(indices), _loss_mask(tokens, indices))


def _evenly(tokens: SplitTokens, length: int, limit: int) -> Int64[np.ndarray, "n l"]:
    count = _count(tokens, length)
    n = min(limit, count)
    return _indices(torch.arange(n) * count // n, length)


def _count(tokens: SplitTokens, length: int) -> int:
    count = tokens.count // length
    if count == 0:
        raise ValueError(f"{tokens.count} tokens do not fill one row of length {length}; prepare more text")
    return count


def _indices(rows: Int64[Tensor, " n"], length: int) -> Int64[np.ndarray, "n l"]:
    return rows.numpy()[:, None] * length + np.arange(length)


def _gather(tokens: SplitTokens, indices: Int64[np.ndarray, "n l"]) -> Int64[Tensor, "n l"]:
    return torch.from_numpy(tokens.at(indices).astype(np.int64))


def _loss_mask(tokens: SplitTokens, indices: Int64[np.ndarray, "n l"]) -> Bool[Tensor, "n l"] | None:
    loss_mask = tokens.loss_mask(indices)
    return None if loss_mask is None else torch.from_numpy(loss_mask)
