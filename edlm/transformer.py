"""The one transformer that every network here is made of: bidirectional or causal, rotary, with or without time."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edlm import equations
from edlm.attention import attend
from edlm.config import ConfigurationError, Fraction, Positive, config
from edlm.packing import Packed, pack
from edlm.rotary import ROTARY_BASE, Turn
from edlm.row_invariance import ROWS_MULTIPLE, SHARED, Linear, gelu_multiple, linear, padded
from edlm.token_sums import LayerNorm

CHUNK = 2**24  # most vocabulary entries (rows x v) that exist at once: 64 MiB in float32
WIDE_ROWS = 16  # with fewer than 32 numbers left AVX-512 takes another path, too; a row has at least two
TIME_FREQUENCIES = 128


@config
class Trunk:
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

    def __init__(self, trunk: Trunk, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.time = TimeEmbedding(trunk.width) if trunk.time_conditioning else None
        self.layers = Layers(
            Layer(trunk.width, trunk.heads, trunk.dropout, trunk.time_conditioning) for _ in range(trunk.layers)
        )
        self.norm = Modulation(trunk.width, trunk.time_conditioning)

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

    def start(self, rows: int, places: int) -> "list[Seen]":
        """For a causal pass that is taken place by place: nothing seen yet in any layer."""
        return [Seen(rows, places, layer, layer.qkv.weight) for layer in self.layers]

    def extend(self, x: Float[Tensor, "b one h"], place: int, seen: "list[Seen]") -> Float[Tensor, "b one h"]:
        """What `forward` gives at one more place of a causal pass without time, from the places that went before."""
        assert self.causal
        assert self.time is None
        turn = self.layers.turn(torch.tensor([place], device=x.device))
        for layer, passed in zip(self.layers, seen, strict=True):
            x = layer.extend(x, turn, passed)
        return self.norm(x, None)[0]


class Layer(nn.Module):
    """Attention, then an MLP of four times the width, both pre-normalised and residual; the identity at first."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, time_conditioning: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention = Modulation(width, time_conditioning)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.norm_mlp = Modulation(width, time_conditioning)
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)
        for inward in (self.qkv, self.up):
            nn.init.normal_(inward.weight, std=width**-0.5)
        for outward in (self.out, self.down):
            nn.init.zeros_(outward.weight)
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.down.bias)

    def forward(
        self,
        x: Float[Tensor, "b l h"],
        turn: Turn,
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
        turn: Turn,
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

    def extend(self, x: Float[Tensor, "b one h"], turn: Turn, seen: "Seen") -> Float[Tensor, "b one h"]:
        """One more place of a causal pass: what `forward` gives there, from the places that went before (no time)."""
        y, _ = self.norm_attention(x, None)
        q, k, v = self._projected(y, turn)
        x = x + self._joined(attend(q, *seen.with_next(k, v)))
        y, _ = self.norm_mlp(x, None)
        return x + self._mlp(y)

    def _projected(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        projected = self._by_head(self.qkv(x), 3)
        q, k = turn(projected[:2])
        return q, k, projected[2]

    def _by_head(self, x: Tensor, parts: int) -> Float[Tensor, "parts b a l c"]:
        """What was projected beside one another."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _joined(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(-2))

    def _attend(self, x: Tensor, turn: Turn, causal: bool, valid: Tensor | None) -> Tensor:
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


class Layers(nn.ModuleList):
    """Layers of one shape, from the first to the last."""

    def __iter__(self) -> Iterator[Layer]:
        return super().__iter__()  # pyright: ignore[reportReturnType]

    def turn(self, positions: Int[Tensor, "*b l"]) -> Turn:
        """The angles by which each of them turns queries and keys at these positions."""
        first = next(iter(self))
        return Turn.at(positions, first.out.in_features // first.heads)


def _of(gate: Tensor | float, rows: Int[Tensor, " n"]) -> Tensor | float:
    """A gate of these rows; without time it is a number."""
    return gate[rows] if isinstance(gate, Tensor) else gate


class Seen:
    """The keys and values of the places that a causal layer has passed, one sequence a row."""

    def __init__(self, rows: int, places: int, layer: Layer, like: Tensor) -> None:
        shape = (rows, layer.heads, places, like.shape[-1] // layer.heads)
        self._keys, self._values, self._count = like.new_empty(shape), like.new_empty(shape), 0

    def with_next(self, key: Float[Tensor, "b a one c"], value: Float[Tensor, "b a one c"]) -> tuple[Tensor, Tensor]:
        """The keys and values so far, this place's included."""
        at, self._count = self._count, self._count + 1
        self._keys[:, :, at : at + 1], self._values[:, :, at : at + 1] = key, value
        return self._keys[:, :, : self._count], self._values[:, :, : self._count]


class Modulation(nn.Module):
    """Layer normalisation with a learned scale, or (adaLN) with scale, shift and gate computed from the time."""

    def __init__(self, width: int, time_conditioning: bool) -> None:
        super().__init__()
        self.norm = LayerNorm(width, elementwise_affine=not time_conditioning, bias=False)
        self.modulate = Linear(TIME_FREQUENCIES, 3 * width) if time_conditioning else None
        if self.modulate is not None:  # zero: scale 1, shift 0, gate 1, so that time matters only once learned
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | float]:
        if self.modulate is None or condition is None:
            return self.norm(x), 1.0
        shift, scale, gate = self.modulate(condition)[:, None].chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift, 1 + gate


class TimeEmbedding(nn.Module):
    """t in [0, 1] as sines and cosines, mixed by two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Linear(TIME_FREQUENCIES, width)
        self.second = Linear(width, TIME_FREQUENCIES)

    def forward(self, t: Float[Tensor, " b"], dtype: torch.dtype) -> Float[Tensor, "b c"]:
        # In blocks that are too small for threads to share: a share may end anywhere within a row.
        block = max(WIDE_ROWS, SHARED // max(TIME_FREQUENCIES, self.first.out_features) // WIDE_ROWS * WIDE_ROWS)
        blocks = padded(t.float()[:, None], WIDE_ROWS).split(block)
        return torch.cat([self._mixed(one, dtype) for one in blocks])[: len(t)]

    def _mixed(self, t: Float[Tensor, "b 1"], dtype: torch.dtype) -> Float[Tensor, "b c"]:
        half = TIME_FREQUENCIES // 2
        scale = torch.exp(-math.log(ROTARY_BASE) * torch.arange(half, device=t.device) / half)
        angle = 1000 * t * scale  # up to 1000 radians, as for a thousand discrete steps
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return F.silu(self.second(F.silu(self.first(waves.to(dtype)))))


class ScalarHead(nn.Module):
    """Features to one number each, in float32; zero before training.

    A product and a sum, not a matrix product: BLAS would make a number's last bits depend on how many there are.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "*n h"]) -> Float[Tensor, "*n"]:
        return (x.float() * self.weight.float()).sum(dim=-1)


class Readout(nn.Module):
    """Features to log-probabilities over the vocabulary, in chunks: [n v] never exists as a whole.

    It owns its weight and is called once for all chunks, so that sharded training (ZeRO-3) gathers the weight once, in
    step on every worker, however many positions each of them has.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.temperature = 1.0  # another one is another law: `edlm.tempering` makes views that have it
        self.weight = nn.Parameter(torch.zeros(vocabulary, width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, features: Float[Tensor, "n h"], consume: Callable[..., tuple[Tensor, ...]], *aligned: Tensor):
        """The outputs of `consume(logits of a chunk [c v], *aligned rows of it)`, joined along n.

        Chunks are recomputed in the backward pass instead of being kept.
        """
        vocabulary = self.weight.shape[0]
        rows = max(ROWS_MULTIPLE, CHUNK // vocabulary // ROWS_MULTIPLE * ROWS_MULTIPLE)
        n = features.shape[0]
        if n <= rows:
            return self._chunk(consume, features, *aligned)
        outputs = [
            checkpoint(
                self._chunk, consume, features[i : i + rows], *(a[i : i + rows] for a in aligned), use_reentrant=False
            )
            for i in range(0, n, rows)
        ]
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))

    def distribution(self, features: Float[Tensor, "n h"]) -> Float[Tensor, "n v"]:
        """log p over the vocabulary, whole: for few positions, or a small vocabulary."""
        return self(features, _distribution)[0]

    def log_p_of(self, features: Float[Tensor, "n h"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log p of one token at each position."""
        return self(features, _of_tokens, tokens)[0]

    def draw(
        self, features: Float[Tensor, "n h"], u: Float64[Tensor, "n k"]
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """k tokens for each position, and the log-probability of each."""
        return self(features, _drawn, u)

    def _chunk(self, consume: Callable[..., tuple[Tensor, ...]], features: Tensor, *aligned: Tensor):
        logits = linear(features, self.weight, self.bias)
        if self.temperature != 1:
            logits = equations.tempered(logits, self.temperature)
        return consume(logits, *aligned)


def _distribution(logits: Tensor) -> tuple[Tensor, ...]:
    return (equations.substitute(logits),)


def _of_tokens(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    return (equations.substitute(logits).gather(-1, tokens[:, None])[:, 0],)


def _drawn(logits: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    return equations.draw(equations.substitute(logits), u)
