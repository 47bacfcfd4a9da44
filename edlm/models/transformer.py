"""The one transformer that every network here is made of: bidirectional or causal, rotary, with or without time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edlm.config import ConfigurationError, Fraction, Positive, config
from edlm.models.attention import attend
from edlm.models.conditioning import AdaLN, TimeEmbedding
from edlm.models.gather import Packed, pack
from edlm.models.rotary import Rotary
from edlm.models.row_invariance import RowInvariantLinear, gelu_multiple, linear, padded


@config
class TransformerConfig:
    """The size of a transformer."""

    width: Positive = 256
    layers: Positive = 4
    heads: Positive = 4
    dropout: Fraction = 0.0
    time_conditioning: bool = False
    """Modulate every layer by t (adaLN, Peebles and Xie 2023); without it the network infers t from the masks."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ConfigurationError(
                f"width {self.width} must be a multiple of 2 x heads = {2 * self.heads}: rotary turns pairs of channels"
            )


class Transformer(nn.Module):
    """Embedded tokens [b l h] to normalised features [b l h]."""

    def __init__(self, trunk: TransformerConfig, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.time = TimeEmbedding(trunk.width) if trunk.time_conditioning else None
        self.layers = Blocks(
            Block(trunk.width, trunk.heads, trunk.dropout, trunk.time_conditioning) for _ in range(trunk.layers)
        )
        self.norm = AdaLN(trunk.width, trunk.time_conditioning)

    def forward(
        self, x: Float[Tensor, "b l h"], t: Float[Tensor, " b"], where: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l h"]:
        """The features; given `where`, of those positions, and of no use elsewhere.

        The last layer then computes keys and values everywhere, and the rest only where it is asked for.
        """
        condition = None if self.time is None else self.time(t, x.dtype)
        *before, last = self.layers
        turn = self.layers.turn(torch.arange(x.shape[1], device=x.device))
        for layer in before:
            x = layer(x, turn, condition, causal=self.causal)
        if where is None:
            return self.norm(last(x, turn, condition, causal=self.causal), condition)[0]
        assert not self.causal
        features = torch.zeros_like(x)
        for packed, y in last.only(x, turn, condition, where):
            y = self.norm(y, None if condition is None else condition[packed.rows])[0]
            features[packed.rows[:, None], packed.positions] = y  # at places that are not valid, too: they are right
        return features

    def start(self, rows: int, places: int) -> "list[KVCache]":
        """For a causal pass that is taken place by place: nothing seen yet in any layer."""
        return [KVCache(rows, places, layer, layer.qkv.weight) for layer in self.layers]

    def extend(self, x: Float[Tensor, "b one h"], place: int, seen: "list[KVCache]") -> Float[Tensor, "b one h"]:
        """What `forward` gives at one more place of a causal pass without time, from the places that went before."""
        assert self.causal
        assert self.time is None
        turn = self.layers.turn(torch.tensor([place], device=x.device))
        for layer, passed in zip(self.layers, seen, strict=True):
            x = layer.extend(x, turn, passed)
        return self.norm(x, None)[0]


class Block(nn.Module):
    """Attention, then an MLP of four times the width, both pre-normalised and residual; the identity at first."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, time_conditioning: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention = AdaLN(width, time_conditioning)
        self.qkv = RowInvariantLinear(width, 3 * width, bias=False)
        self.out = RowInvariantLinear(width, width, bias=False)
        self.norm_mlp = AdaLN(width, time_conditioning)
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
        turn: Rotary,
        condition: Float[Tensor, "b c"] | None = None,
        causal: bool = False,
        valid: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l h"]:
        """Places that are not `valid` are seen by nobody; in a causal pass they stand behind all others instead."""
        y, gate = self.norm_attention(x, condition)
        x = x + gate * self._drop(self._attend(y, turn, causal, valid))
        y, gate = self.norm_mlp(x, condition)
        return x + gate * self._drop(self._mlp(y))

    def only(
        self,
        x: Float[Tensor, "b l h"],
        turn: Rotary,
        condition: Float[Tensor, "b c"] | None,
        where: Bool[Tensor, "b l"],
    ) -> Iterator[tuple[Packed, Float[Tensor, "n m h"]]]:
        """What `forward` gives (bidirectional) at the selected positions alone, packed: the others are only seen."""
        y, gate = self.norm_attention(x, condition)
        width = x.shape[-1]
        k, v = self._by_head(linear(y, self.qkv.weight[width:]), 2)
        k = turn(k)
        for packed in pack(where, None):
            rows, at = packed.rows, packed.positions
            (q,) = self._by_head(linear(y[rows[:, None], at], self.qkv.weight[:width]), 1)
            attended = attend(turn.of(at)(q), k[rows], v[rows])
            z = x[rows[:, None], at] + _of(gate, rows) * self._joined(attended)
            inward, gate_mlp = self.norm_mlp(z, None if condition is None else condition[rows])
            yield packed, z + gate_mlp * self._mlp(inward)

    def extend(self, x: Float[Tensor, "b one h"], turn: Rotary, seen: "KVCache") -> Float[Tensor, "b one h"]:
        """One more place of a causal pass: what `forward` gives there, from the places that went before (no time)."""
        y, _ = self.norm_attention(x, None)
        q, k, v = self._projected(y, turn)
        x = x + self._joined(attend(q, *seen.with_next(k, v)))
        y, _ = self.norm_mlp(x, None)
        return x + self._mlp(y)

    def _projected(self, x: Tensor, turn: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        projected = self._by_head(self.qkv(x), 3)
        q, k = turn(projected[:2])
        return q, k, projected[2]

    def _by_head(self, x: Tensor, parts: int) -> Float[Tensor, "parts b a l c"]:
        """What was projected beside one another."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _joined(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(-2))

    def _attend(self, x: Tensor, turn: Rotary, causal: bool, valid: Tensor | None) -> Tensor:
        q, k, v = self._projected(x, turn)
        seen = None
        if valid is not None:
            assert not causal
            # One row of the mask serves all who ask, so that nothing grows with the square of the length. Where nothing
            # is valid everything is seen: there would be a softmax over nothing.
            seen = (valid | ~valid.any(dim=1, keepdim=True))[:, None, None]
        return self._joined(attend(q, k, v, seen, causal, self.dropout if self.training else 0.0))

    def _mlp(self, y: Float[Tensor, "*n h"]) -> Float[Tensor, "*n h"]:
        rows = y.flatten(0, -2)
        whole = padded(rows, gelu_multiple(len(rows), self.up.out_features))
        return self.down(F.gelu(self.up(whole), approximate="tanh"))[: len(rows)].unflatten(0, y.shape[:-1])

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Blocks(nn.ModuleList):
    """Layers of one shape, from the first to the last."""

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # pyright: ignore[reportReturnType]

    def turn(self, positions: Int[Tensor, "*b l"]) -> Rotary:
        """The angles by which each of them turns queries and keys at these positions."""
        first = next(iter(self))
        return Rotary.at(positions, first.out.in_features // first.heads)


def _of(gate: Tensor | float, rows: Int[Tensor, " n"]) -> Tensor | float:
    """A gate of these rows; without time it is a number."""
    return gate[rows] if isinstance(gate, Tensor) else gate


class KVCache:
    """The keys and values of the places that a causal layer has passed, one sequence a row."""

    def __init__(self, rows: int, places: int, layer: Block, like: Tensor) -> None:
        shape = (rows, layer.heads, places, like.shape[-1] // layer.heads)
        self._keys, self._values, self._count = like.new_empty(shape), like.new_empty(shape), 0

    def with_next(self, key: Float[Tensor, "b a one c"], value: Float[Tensor, "b a one c"]) -> tuple[Tensor, Tensor]:
        """The keys and values so far, this place's included."""
        at, self._count = self._count, self._count + 1
        self._keys[:, :, at : at + 1], self._values[:, :, at : at + 1] = key, value
        return self._keys[:, :, : self._count], self._values[:, :, : self._count]
