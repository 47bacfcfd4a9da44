"""Transformer underlying every network: bidirectional or causal, rotary, with or without time conditioning."""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edlm.config import ConfigurationError, Fraction, Positive, config
from edlm.models.attention import Projection, attend, attend_at, attends_at
from edlm.models.conditioning import AdaLN, TimeConditioning, TimeEmbedding
from edlm.models.documents import same_document
from edlm.models.gather import GatheredPositions, gather_positions
from edlm.models.kv_cache import KVCache
from edlm.models.repeated_tokens import RepeatedTokens
from edlm.models.rotary import Rotary
from edlm.models.row_invariance import RowInvariantLinear, gelu_multiple, linear, padded, unpadded


@config
class TransformerConfig:
    """Size of a transformer."""

    width: Positive = 256
    """Channels per position; a multiple of 2 x `heads`. The MLP of a layer is four times as wide."""
    layers: Positive = 4
    """Number of layers, each of attention and an MLP."""
    heads: Positive = 4
    """Attention heads per layer; each has `width` / `heads` channels."""
    dropout: Fraction = 0.0
    """Share of the values set to 0 in training: attention weights, and the outputs of attention and MLP."""
    time_conditioning: bool = False
    """Modulate every layer by t (adaLN, Peebles and Xie 2023); without it the network infers t from the masks."""

    def __post_init__(self) -> None:
        require_whole_heads(self.width, self.heads)


def require_whole_heads(width: int, heads: int) -> None:
    """Raise ConfigurationError unless every head has an even number of channels."""
    if width % (2 * heads):
        raise ConfigurationError(
            f"width {width} must be a multiple of 2 x heads = {2 * heads}: rotary turns pairs of channels"
        )


class Transformer(nn.Module):
    """Transformer from embedded tokens [b l h] to normalised features [b l h].

    `conditioning` makes the modules that read the time; None: those of this project, as the configuration says.
    """

    def __init__(self, config: TransformerConfig, causal: bool, conditioning: TimeConditioning | None = None) -> None:
        super().__init__()
        self.causal = causal
        made = _conditioning(config) if conditioning is None else conditioning
        self.time = made.time()
        self.layers = Blocks(
            Block(config.width, config.heads, config.dropout, norm=made.norm) for _ in range(config.layers)
        )
        self.norm = made.last_norm()

    def forward(
        self,
        x: Float[Tensor, "b l h"],
        t: Float[Tensor, " b"],
        where: Bool[Tensor, "b l"] | None = None,
        documents: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l h"]:
        """Compute the features; given `where`, only those positions are valid.

        The last layer then computes keys and values everywhere and the rest only at the selected positions.
        Given `documents`, the index of each position's document, positions attend within their document only.
        """
        condition = None if self.time is None else self.time(t, x.dtype)
        *before, last = self.layers
        rotary = self.layers.rotary(torch.arange(x.shape[1], device=x.device))
        seen = None if documents is None else same_document(documents, self.causal)
        for layer in before:
            x = layer(x, rotary, condition, causal=self.causal, seen=seen)
        if where is None:
            return self.norm(last(x, rotary, condition, causal=self.causal, seen=seen), condition)[0]
        assert not self.causal
        assert seen is None
        features = torch.zeros_like(x)
        for gathered, y in last.only(x, rotary, condition, where):
            y = self.norm(y, None if condition is None else condition[gathered.rows])[0]
            features[gathered.rows[:, None], gathered.positions] = y  # also at padding positions, which are correct
        return features

    def at(
        self,
        x: Float[Tensor, "b l h"],
        t: Float[Tensor, " b"],
        index: tuple[Int[Tensor, " n"], ...],
        documents: Int[Tensor, "b l"] | None = None,
        repeated: RepeatedTokens | None = None,
    ) -> Float[Tensor, "n h"]:
        """Compute the features of `forward` at n selected positions, given as (rows, positions), for training.

        The last layer computes keys and values everywhere and the rest at those positions only, in the order of the
        rows. Unlike `forward` with `where`, it has dropout, no padding, and a row's last bits depend on the number of
        selected positions. Given the `repeated` tokens of x, the first layer projects each once, unless it reads t.
        """
        condition = None if self.time is None else self.time(t, x.dtype)
        *before, last = self.layers
        rotary = self.layers.rotary(torch.arange(x.shape[1], device=x.device))
        seen = None if documents is None else same_document(documents, self.causal)
        repeated = repeated if condition is None else None
        for layer in before:
            x = layer(x, rotary, condition, causal=self.causal, seen=seen, repeated=repeated)
            repeated = None
        y = last.at(x, rotary, condition, index, causal=self.causal, seen=seen)
        return self.norm(y, None if condition is None else condition[index[0]])[0][:, 0]

    def start(self, rows: int, length: int) -> list[KVCache]:
        """Return an empty KV cache per layer, for a causal pass position by position."""
        return [KVCache(rows, length, layer.heads, layer.qkv.weight) for layer in self.layers]

    def extend(self, x: Float[Tensor, "b one h"], position: int, caches: list[KVCache]) -> Float[Tensor, "b one h"]:
        """Compute the result of `forward` at the next position of a causal pass without time, from the KV caches."""
        assert self.causal
        assert self.time is None
        rotary = self.layers.rotary(torch.full((1,), position, device=x.device))
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer.extend(x, rotary, cache)
        return self.norm(x, None)[0]


class Block(nn.Module):
    """Attention, then an MLP of four times the width, both pre-normalised and residual; initialised to the identity.

    `norm` makes its two normalisations; None: `AdaLN`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        time_conditioning: bool = False,
        norm: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        norm = functools.partial(AdaLN, width, time_conditioning) if norm is None else norm
        self.norm_attention = norm()
        self.qkv = Projection(width, 3 * width, bias=False)
        self.out = RowInvariantLinear(width, width, bias=False)
        self.norm_mlp = norm()
        self.up = RowInvariantLinear(width, 4 * width)
        self.down = RowInvariantLinear(4 * width, width)
        for inward in (self.qkv, self.up):
            nn.init.normal_(inward.weight, std=width**-0.5)
        for outward in (self.out, self.down):
            nn.init.zeros_(outward.weight)
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.down.bias)

    def forward(
        self,
        x: Float[Tensor, "b l h"],
        rotary: Rotary,
        condition: Float[Tensor, "b c"] | None = None,
        causal: bool = False,
        valid: Bool[Tensor, "b l"] | None = None,
        seen: Bool[Tensor, "b 1 l l"] | None = None,
        repeated: RepeatedTokens | None = None,
    ) -> Float[Tensor, "b l h"]:
        """Apply the block; only `valid` positions are attended to. In a causal pass, put the others last instead.

        `seen` takes the place of both: the positions (last axis) that each position attends to. `repeated`, without a
        condition: the tokens whose embeddings x is, which are projected once each.
        """
        y, gate = self.norm_attention(x if repeated is None else repeated.table, condition)
        projected = self.qkv(y) if repeated is None else repeated.spread(self.qkv(y))
        x = x + gate * self._drop(self.out(self._attended(projected, rotary, causal, valid, seen)))
        y, gate = self.norm_mlp(x, condition)
        return x + gate * self._drop(self._mlp(y))

    def only(
        self,
        x: Float[Tensor, "b l h"],
        rotary: Rotary,
        condition: Float[Tensor, "b c"] | None,
        where: Bool[Tensor, "b l"],
    ) -> Iterator[tuple[GatheredPositions, Float[Tensor, "n m h"]]]:
        """Compute bidirectional `forward` at the selected positions only; the others are only attended to.

        `where` may be on the host, for a device that need not be waited for.
        """
        y, gate = self.norm_attention(x, condition)
        width = x.shape[-1]
        k, v = self._by_head(linear(y, self.qkv.weight[width:]), 2)
        k = rotary(k)
        for gathered in gather_positions(where, None, device=x.device):
            rows, positions = gathered.rows, gathered.positions
            (q,) = self._by_head(linear(y[rows[:, None], positions], self.qkv.weight[:width]), 1)
            attended = attend(rotary.of(positions)(q), k[rows], v[rows])
            z = x[rows[:, None], positions] + _of(gate, rows) * self._joined(attended)
            hidden, gate_mlp = self.norm_mlp(z, None if condition is None else condition[rows])
            yield gathered, z + gate_mlp * self._mlp(hidden)

    def at(
        self,
        x: Float[Tensor, "b l h"],
        rotary: Rotary,
        condition: Float[Tensor, "b c"] | None,
        index: tuple[Int[Tensor, " n"], ...],
        causal: bool = False,
        seen: Bool[Tensor, "b 1 l l"] | None = None,
    ) -> Float[Tensor, "n 1 h"]:
        """Compute `forward` at selected positions, given as (rows, positions) in the order of the rows."""
        y, gate = self.norm_attention(x, condition)
        if attends_at(x) and not causal and seen is None and not (self.training and self.dropout):
            attended = self._attended_at(y, rotary, index)
        else:
            attended = self._attended(self.qkv(y), rotary, causal, None, seen)[index]
        x = x[index][:, None] + _of(gate, index[0]) * self._drop(self.out(attended[:, None]))
        y, gate = self.norm_mlp(x, None if condition is None else condition[index[0]])
        return x + gate * self._drop(self._mlp(y))

    def extend(self, x: Float[Tensor, "b one h"], rotary: Rotary, cache: KVCache) -> Float[Tensor, "b one h"]:
        """Compute the result of `forward` at the next position of a causal pass without time, from the KV cache."""
        y, _ = self.norm_attention(x, None)
        q, k, v = self._rotated(self.qkv(y), rotary)
        x = x + self._joined(attend(q, *cache.with_next(k, v)))
        y, _ = self.norm_mlp(x, None)
        return x + self._mlp(y)

    def _rotated(self, projected: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        qk, v = self._by_head(projected, 3).split((2, 1))  # one backward pass joins their gradients
        q, k = rotary(qk)
        return q, k, v[0]

    def _by_head(self, x: Tensor, parts: int) -> Float[Tensor, "parts b a l c"]:
        """Split a joint projection into its parts and heads."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _joined(self, y: Tensor) -> Tensor:
        return self.out(_by_position(y))

    def _attended(
        self, projected: Tensor, rotary: Rotary, causal: bool, valid: Tensor | None, seen: Tensor | None
    ) -> Float[Tensor, "b l h"]:
        q, k, v = self._rotated(projected, rotary)
        visible = None
        if seen is not None:
            assert valid is None
            visible, causal = seen, False
        elif valid is not None:
            assert not causal
            # One mask row serves all queries, so that memory does not grow with the square of the length. Sequences
            # without valid positions attend to everything, because a softmax over nothing is undefined.
            visible = (valid | ~valid.any(dim=1, keepdim=True))[:, None, None]
        return _by_position(attend(q, k, v, visible, causal, self.dropout if self.training else 0.0))

    def _attended_at(self, y: Tensor, rotary: Rotary, index: tuple[Tensor, ...]) -> Float[Tensor, "n h"]:
        rows, positions = index
        at_index, everywhere = self.qkv(y, index)
        (q,), (k, v) = self._by_head(at_index[None], 1), self._by_head(everywhere, 2)
        attended = attend_at(rotary.of(positions)(q)[0], rotary(k), v, rows)
        return _by_position(attended[None])[0]

    def _mlp(self, y: Float[Tensor, "*n h"]) -> Float[Tensor, "*n h"]:
        rows = y.flatten(0, -2)
        hidden = F.gelu(self.up(padded(rows, gelu_multiple(len(rows), self.up.out_features))), approximate="tanh")
        return unpadded(self.down(hidden), len(rows)).unflatten(0, y.shape[:-1])

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Blocks(nn.ModuleList):
    """Blocks of one shape, in order."""

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # pyright: ignore[reportReturnType]

    def rotary(self, positions: Int[Tensor, "*b l"]) -> Rotary:
        """Return the rotary angles of every block's queries and keys at these positions."""
        first = next(iter(self))
        return Rotary.at(positions, first.out.in_features // first.heads)


def _by_position(y: Float[Tensor, "b a l c"]) -> Float[Tensor, "b l h"]:
    """Join the heads of each position."""
    return y.transpose(1, 2).flatten(-2)


def _of(gate: Tensor | float, rows: Int[Tensor, " n"]) -> Tensor | float:
    """Return the gate of these rows; without time it is a number."""
    return gate[rows] if isinstance(gate, Tensor) else gate


def _conditioning(config: TransformerConfig) -> TimeConditioning:
    """Return the makers of this project's modules that read the time."""
    norm = functools.partial(AdaLN, config.width, config.time_conditioning)
    return TimeConditioning(lambda: TimeEmbedding(config.width) if config.time_conditioning else None, norm, norm)
