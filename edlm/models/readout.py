"""Output heads: features to log-probabilities over the vocabulary in chunks, or to one number."""

import functools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edlm import equations
from edlm.models.chunk_memory import ChunkMemory
from edlm.models.row_invariance import ROWS_MULTIPLE, linear
from edlm.models.summed_log_p import summed_log_p

CHUNK = 2**24  # maximum of vocabulary entries (rows x v) in memory at once: 64 MiB in float32
CPU_CHUNK = 13 * 2**19  # the same on a CPU: 26 MiB, which glibc's malloc keeps for the next chunk (up to 32 MiB), and
# 128 rows of GPT-2's vocabulary: with 80, a matrix product takes a quarter longer per row

Consume = Callable[..., tuple[Tensor, ...]]
"""Function of a chunk's logits [c v] and of the aligned rows of it; each output has c rows."""


class ScalarHead(nn.Module):
    """Head from features to one number per row, in float32; zero before training.

    A product and a sum, not a matrix product: BLAS would make a row's last bits depend on the number of rows.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "*n h"]) -> Float[Tensor, "*n"]:
        return (x.float() * self.weight.float()).sum(dim=-1)


class LMHead(nn.Module):
    """LM head from features to log-probabilities over the vocabulary, in chunks: [n v] is never materialised.

    It owns its weight and is called once for all chunks, so that sharded training (ZeRO-3) gathers the weight once and
    in step on every worker, whatever the number of positions per worker.
    """

    # Truncation of what tokens are drawn from, `distribution` and `draw`, which changes it
    # (`edlm.inference.token_truncation`). `log_p_of` given tokens is never truncated.
    top_k: int | None = None
    top_p: float = 1.0

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.temperature = 1.0  # other values change the distribution (`edlm.inference.token_temperature`)
        self.weight = nn.Parameter(torch.zeros(vocabulary, width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, compute: Callable[..., tuple[Tensor, ...]], features: Float[Tensor, "n h"], *aligned: Tensor):
        """Return `compute(features, *aligned)`; sharded training has gathered the weight and the bias within."""
        return compute(features, *aligned)

    def by_chunk(self, consume: Consume, features: Float[Tensor, "n h"], *aligned: Tensor):
        """Return the outputs of `consume(logits of a chunk [c v], *aligned rows of it)`, concatenated along n.

        Chunks are recomputed in the backward pass instead of being stored. Gradients are summed over chunks in float32.
        """
        return self(functools.partial(self._by_chunk, consume), features, *aligned)

    def _by_chunk(self, consume: Consume, features: Tensor, *aligned: Tensor) -> tuple[Tensor, ...]:
        weight, bias, rows = self.weight, self.bias, self._chunk_rows()
        if len(features) <= rows:
            return self._chunk(weight, bias, consume, features, *aligned)
        if weight.requires_grad and torch.is_grad_enabled():
            weight, bias = weight.float(), bias.float()
        outputs = [
            checkpoint(self._chunk, weight, bias, consume, *chunk, use_reentrant=False)
            for chunk in zip(*(values.split(rows) for values in (features, *aligned)), strict=True)
        ]
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))

    def logits(self, features: Float[Tensor, "n h"], weight: Tensor, bias: Tensor) -> Float[Tensor, "n v"]:
        """Compute the logits of a chunk from this head's gathered weight and bias."""
        return linear(features, weight, bias)

    def distribution(self, features: Float[Tensor, "n h"]) -> Float[Tensor, "n v"]:
        """Return the whole log p over the vocabulary: for few positions or a small vocabulary."""
        return self.by_chunk(self._distribution, features)[0]

    def log_p_of(self, features: Float[Tensor, "n h"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return log p of one token per position."""
        return self.by_chunk(functools.partial(_of_tokens, ChunkMemory()), features, tokens)[0]

    def log_p_sum(
        self, features: Float[Tensor, "n h"], tokens: Int[Tensor, " n"], weights: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " n"]]:
        """Return sum_n weights_n log p of one token per position, and log p of each, which has no gradient.

        In training a quarter of the work of `log_p_of` is saved: chunks are not computed again (`summed_log_p`).
        """
        assert self.temperature == 1
        return self(self._log_p_sum, features, tokens, weights)

    def draw(
        self, features: Float[Tensor, "n h"], u: Float64[Tensor, "n k"]
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Draw k tokens per position and return them with their log-probabilities."""
        return self.by_chunk(functools.partial(self._drawn, ChunkMemory()), features, u)

    def draw_beside(
        self, features: Float[Tensor, "n h"], tokens: Int[Tensor, " n"], u: Float64[Tensor, "n k"]
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """Return what `draw` and `log_p_of` do, from logits that are computed once."""
        return self.by_chunk(functools.partial(self._drawn_beside, ChunkMemory()), features, tokens, u)

    def _chunk(
        self, weight: Tensor, bias: Tensor, consume: Consume, features: Tensor, *aligned: Tensor
    ) -> tuple[Tensor, ...]:
        logits = self.logits(features, weight.to(self.weight.dtype), bias.to(self.bias.dtype))
        if self.temperature != 1:
            logits = equations.tempered(logits, self.temperature)
        return consume(logits, *aligned)

    def _log_p_sum(self, features: Tensor, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return summed_log_p(self.logits, self._chunk_rows(), features, self.weight, self.bias, tokens, weights)

    def _chunk_rows(self) -> int:
        return _rows(len(self.weight), min(CHUNK, CPU_CHUNK) if self.weight.device.type == "cpu" else CHUNK)

    def _distribution(self, logits: Tensor) -> tuple[Tensor, ...]:
        return (self._truncated(equations.substitute(logits)),)

    def _drawn(self, memory: ChunkMemory, logits: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        return memory.draw(self._truncated(memory.log_p(logits)) if self._truncates else logits, u)

    def _drawn_beside(self, memory: ChunkMemory, logits: Tensor, tokens: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        return *self._drawn(memory, logits, u), *_of_tokens(memory, logits, tokens)

    def _truncated(self, log_p: Tensor) -> Tensor:
        return equations.truncated(log_p, self.top_k, self.top_p) if self._truncates else log_p

    @property
    def _truncates(self) -> bool:
        return self.top_k is not None or self.top_p != 1


def _of_tokens(memory: ChunkMemory, logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    return (memory.log_p(logits).gather(-1, tokens[:, None])[:, 0],)


def chunks(where: Bool[Tensor, "b l"], vocabulary: int) -> Iterator[Bool[Tensor, "b l"]]:
    """Split the selected positions into masks of at most a chunk's rows each."""
    size = _rows(vocabulary, CHUNK)
    total = int(where.sum())
    if 0 < total <= size:
        yield where
        return
    count = where.flatten().cumsum(0).view_as(where)
    for start in range(0, total, size):
        yield where & (count > start) & (count <= start + size)


def _rows(vocabulary: int, entries: int) -> int:
    """Return the number of positions of a chunk of at most so many vocabulary entries."""
    return max(ROWS_MULTIPLE, entries // vocabulary // ROWS_MULTIPLE * ROWS_MULTIPLE)
