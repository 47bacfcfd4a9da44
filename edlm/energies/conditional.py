"""Conditional energy of this project: Z = 1, a light causal head on the denoiser's features."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm.config import NonNegative, Positive, config
from edlm.cooperative_work import Cooperative
from edlm.device_copies import fetched
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.energies.step import new_positions
from edlm.interfaces import AbstractEnergy
from edlm.models.denoiser import AbstractDenoiser
from edlm.models.float32_summed_layers import Embedding, LayerNorm, embedded
from edlm.models.gather import GatheredPositions, gather_positions
from edlm.models.kv_cache import KVCache
from edlm.models.row_invariance import ROWS_MULTIPLE, RowInvariantLinear
from edlm.models.transformer import Block, Blocks, require_whole_heads


class ConditionalEnergy(AbstractEnergy):
    """E = log p_theta(x_U | x_t) - log p_c(x_U | x_t), Z = 1 exactly (docs/mathematics.md 3.4).

    p_c factorises over the new positions in reading order. Its logits are the denoiser's plus a correction, zero before
    training, from light causal layers over the features of x_t, the last new token, the `left` tokens to the left,
    known or just drawn, and the `right` tokens to the right, as far as x_t knows them. The correction is added to the
    features, before the denoiser's own LM head: no second vocabulary matrix.
    """

    whole_sequence = False
    takes_positions = True
    normalised = True

    def __init__(self, width: int, layers: int, heads: int, left: int, right: int, denoiser: AbstractDenoiser) -> None:
        super().__init__()
        self.mask = denoiser.mask
        self._denoiser = (denoiser,)  # in a tuple: borrowed, neither a submodule nor saved with this module
        self.features = RowInvariantLinear(denoiser.width, width)
        # one id more than the denoiser: the edge of the canvas
        self.left, self.last = (Embedding(denoiser.vocabulary + 2, width) for _ in range(2))
        # tables of the other neighbours, one per offset
        self.near = Neighbours(left - 1 + right, denoiser.vocabulary + 2, width) if left - 1 + right else None
        self.further_left, self.right = range(-left, -1), range(1, right + 1)
        self.layers = Blocks(Block(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width, bias=False)
        self.correction = RowInvariantLinear(width, denoiser.width, bias=False)
        nn.init.zeros_(self.correction.weight)

    def forward(self, x, xt, t, log_p, context, new=None):
        return log_p - self.log_p(x, xt, context, new)[..., None]

    def log_p(
        self,
        x: Int[Tensor, "b k l"],
        xt: Int[Tensor, "b l"],
        context: Float[Tensor, "b l h"],
        new: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Return log p_c(x_U | x_t) of each candidate; U is where x_t is masked and x is not: `new`, if it is known."""
        b, k, _ = x.shape
        found, x = new_positions(x, xt, self.mask)
        new = found if new is None else new
        result = context.new_zeros(b, k, dtype=torch.float32)
        for gathered in gather_positions(new, None, self.training, context.device):
            result[gathered.rows] += self._of_tokens(gathered, x, xt, context).sum(dim=-1)
        return result

    def read(
        self,
        x: Int[Tensor, "b l"],
        xt: Int[Tensor, "b l"],
        context: Float[Tensor, "b l h"],
        new: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l h"]:
        """Compute the features of new positions, each corrected for the new tokens of x before it: ONE head pass."""
        found, filled = new_positions(x[:, None], xt, self.mask)
        new = found if new is None else new
        corrected = torch.zeros_like(context)
        for gathered in gather_positions(new, None, self.training, context.device):
            rows, columns = gathered.indices
            features = self._corrected(gathered, filled[gathered.rows], xt[gathered.rows], context)[:, 0]
            corrected[gathered.rows[rows], gathered.positions[rows, columns]] = features[rows, columns]
        return corrected

    def log_p_of(
        self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], x: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l"]:
        """Return log p_c of the tokens of x at the selected new positions, 0 elsewhere, given the result of `read`."""
        return self._denoiser[0].log_p_of(features, where, x)

    def distribution(self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """Return log p_c of every token at the selected new positions."""
        return self._denoiser[0].log_p(features, where)

    @torch.no_grad()
    def draw(
        self,
        xt: Int[Tensor, "b l"],
        where: Bool[Tensor, "b l"],
        context: Float[Tensor, "b l h"],
        u: Float64[Tensor, "b l"],
    ) -> Cooperative[tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]]:
        """Draw x_U ~ p_c(. | x_t) exactly, in reading order, with log p_c of each token; x_t and 0 elsewhere.

        U is `where`, which is fetched unless it is on the host.
        """
        (where,) = fetched([where])
        counts, nowhere = where.sum(dim=1), len(xt)
        x, log_p = F.pad(xt, (0, 0, 0, 1)), torch.zeros(nowhere + 1, xt.shape[1], device=xt.device)
        for gathered in gather_positions(where, None, self.training, context.device):
            # Whole multiples of rows: with fewer, BLAS would make a row's last bits depend on the number of rows.
            gathered = gathered.padded(ROWS_MULTIPLE)
            rows, positions = gathered.rows, gathered.positions
            caches = [KVCache(len(rows), positions.shape[1], layer.heads, self.norm.weight) for layer in self.layers]
            features = context[rows[:, None], positions]
            inputs = self.features(features) + self._known_right(positions, xt[rows])
            last = torch.full_like(rows, self.mask + 1)
            size, into = positions.shape[1], torch.where(gathered.valid, rows[:, None], nowhere)
            # In sharded training every worker must make the same calls, so padding positions are computed there too.
            for i in range(size if self.training else int(counts[counts <= size].max())):
                position = positions[:, i : i + 1]
                z = inputs[:, i : i + 1] + self.last(last)[:, None] + self._settled_left(position, x[rows])
                rotary = self.layers.rotary(position)
                for layer, cache in zip(self.layers, caches, strict=True):
                    z = layer.extend(z, rotary, cache)
                corrected = features[:, i] + self.correction(self.norm(z))[:, 0]
                tokens, token_log_p = self._denoiser[0].readout.draw(corrected, u[rows[:, None], position])
                last, new = tokens[:, 0], (into[:, i], position[:, 0])
                x[new], log_p[new] = last, token_log_p[:, 0]
                yield
        return x[:nowhere], log_p[:nowhere]

    def _of_tokens(
        self, gathered: GatheredPositions, x: Int[Tensor, "b k l"], xt: Int[Tensor, "b l"], context: Tensor
    ) -> Float[Tensor, "n k m"]:
        """Return log p_c of the new token at every gathered position, 0 at padding."""
        (units, columns), k = gathered.indices, x.shape[1]
        corrected = self._corrected(gathered, x[gathered.rows], xt[gathered.rows], context)
        tokens = x[gathered.rows[units], :, gathered.positions[units, columns]]
        log_p = self._denoiser[0].readout.log_p_of(corrected[units, :, columns].flatten(0, 1), tokens.flatten())
        result = log_p.new_zeros(corrected.shape[:-1])
        result[units, :, columns] = log_p.unflatten(0, (-1, k))
        return result

    def _corrected(
        self, gathered: GatheredPositions, x: Int[Tensor, "n k l"], xt: Int[Tensor, "n l"], context: Tensor
    ) -> Float[Tensor, "n k m h"]:
        """Compute the features of the new positions, corrected for the new tokens before each."""
        positions, k = gathered.positions, x.shape[1]
        positions_k = positions.repeat_interleave(k, 0)
        features = context[gathered.rows[:, None], positions][:, None]
        x = x.flatten(0, 1)
        last = F.pad(x.gather(1, positions_k)[:, :-1], (1, 0), value=self.mask + 1)
        inputs = (self.features(features[:, 0]) + self._known_right(positions, xt)).repeat_interleave(k, 0)
        z = inputs + self.last(last) + self._settled_left(positions_k, x)
        rotary = self.layers.rotary(positions_k)
        for layer in self.layers:
            z = layer(z, rotary, causal=True)  # padding comes after all valid positions, which do not attend to it
        return features + self.correction(self.norm(z)).unflatten(0, (-1, k))

    def _settled_left(self, at: Int[Tensor, "n m"], x: Int[Tensor, "n l"]) -> Float[Tensor, "n m h"]:
        """Embed the tokens of x to the left of each position, new ones included."""
        beside = self.left(_beside(at, x, -1, self.mask + 1))
        return beside + self._near(at, x, self.further_left, 0) if self.further_left else beside

    def _known_right(self, at: Int[Tensor, "n m"], xt: Int[Tensor, "n l"]) -> Tensor | float:
        """Embed the tokens of x_t to the right of each position, where new tokens are masks."""
        return self._near(at, xt, self.right, len(self.further_left)) if self.right else 0.0

    def _near(self, at: Tensor, x: Tensor, offsets: range, table: int) -> Float[Tensor, "n m h"]:
        """Sum the embeddings of the tokens at `offsets` from each position, by the tables from `table` on."""
        assert self.near is not None
        return self.near(at, x, offsets, table)


class Neighbours(nn.Module):
    """Embedding tables, one per offset, concatenated in one weight."""

    def __init__(self, tables: int, ids: int, width: int) -> None:
        super().__init__()
        self.ids = ids
        self.weight = nn.Parameter(torch.randn(tables * ids, width))

    def forward(
        self, at: Int[Tensor, "n m"], x: Int[Tensor, "n l"], offsets: range, table: int
    ) -> Float[Tensor, "n m h"]:
        """Sum the embeddings of the tokens at `offsets`, the first by table `table`; the last id is the edge.

        Added one at a time: [n, m, offsets, h] is never materialised, and a position's bits do not depend on other
        positions. The weight is unbound once and so gets one gradient of its size instead of one per offset.
        """
        tables = self.weight.unflatten(0, (-1, self.ids)).unbind()[table : table + len(offsets)]
        total = torch.zeros((), device=x.device)
        for offset, weight in zip(offsets, tables, strict=True):
            total = total + embedded(_beside(at, x, offset, self.ids - 1), weight).float()
        return total.to(self.weight.dtype)


@config
class ConditionalEnergyConfig(AbstractEnergyConfig):
    """Normalised step energy: a light causal head on the denoiser's features."""

    network = ConditionalEnergy
    kind: Literal["conditional"] = "conditional"
    width: Positive = 128
    """Channels per position of the head; a multiple of 2 x `heads`."""
    layers: Positive = 2
    """Number of the head's layers, causal over the new positions."""
    heads: Positive = 4
    """Attention heads per layer of the head."""
    left: Positive = 1
    """Number of tokens to the left of a new one that the head reads directly, known or just drawn."""
    right: NonNegative = 0
    """Number of tokens to the right, as far as they are known."""

    def __post_init__(self) -> None:
        require_whole_heads(self.width, self.heads)

    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> ConditionalEnergy:
        return ConditionalEnergy(self.width, self.layers, self.heads, self.left, self.right, denoiser)


def _beside(at: Int[Tensor, "n m"], x: Int[Tensor, "n l"], offset: int, edge: int) -> Int[Tensor, "n m"]:
    """Return the token of x at `offset` from each position, `edge` beyond the canvas."""
    position = at + offset
    inside = position.clamp(0, x.shape[1] - 1)
    return torch.where(position == inside, x.gather(1, inside), edge)
