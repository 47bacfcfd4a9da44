"""The conditional energy, ours: Z = 1, a light causal head on the denoiser's features (docs/mathematics.md 3.4)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm.cooperative import Bites
from edlm.energies.step import new_positions
from edlm.interfaces import AbstractEnergy
from edlm.models.denoiser import Denoiser
from edlm.models.gather import Packed, pack
from edlm.models.row_invariance import ROWS_MULTIPLE, RowInvariantLinear
from edlm.models.token_sums import Embedding, LayerNorm, embedded
from edlm.models.transformer import Block, Blocks, KVCache


class ConditionalEnergy(AbstractEnergy):
    """Ours (docs/mathematics.md 3.4): E = log p_theta(x_U | x_t) - log p_c(x_U | x_t), Z = 1 exactly.

    p_c goes through the new positions in reading order. Its logits are the denoiser's plus a correction, zero before
    training, from light causal layers over the features of x_t, the last new token, the `left` tokens to the left,
    known or just drawn, and the `right` ones to the right, as far as x_t knows them.
    It is added to the features, before the denoiser's own readout: no second vocabulary matrix.
    """

    whole_sequence = False
    normalised = True

    def __init__(self, width: int, layers: int, heads: int, left: int, right: int, denoiser: Denoiser) -> None:
        super().__init__()
        self.mask = denoiser.mask
        self._denoiser = (denoiser,)  # in a tuple: borrowed, not a part of this module and not saved with it
        self.features = RowInvariantLinear(denoiser.trunk.width, width)
        # one more id than the denoiser has: the edge of the canvas
        self.left, self.last = (Embedding(denoiser.vocabulary + 2, width) for _ in range(2))
        # the other neighbours', one table after the other
        self.near = Neighbours(left - 1 + right, denoiser.vocabulary + 2, width) if left - 1 + right else None
        self.further_left, self.right = range(-left, -1), range(1, right + 1)
        self.layers = Blocks(Block(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width, bias=False)
        self.correction = RowInvariantLinear(width, denoiser.trunk.width, bias=False)
        nn.init.zeros_(self.correction.weight)

    def forward(self, x, xt, t, log_p, context):
        return log_p - self.log_p(x, xt, context)[..., None]

    def log_p(
        self, x: Int[Tensor, "b k l"], xt: Int[Tensor, "b l"], context: Float[Tensor, "b l h"]
    ) -> Float[Tensor, "b k"]:
        """log p_c(x_U | x_t) of each candidate; U is where x_t is masked and x is not."""
        b, k, _ = x.shape
        new, x = new_positions(x, xt, self.mask)
        result = context.new_zeros(b, k, dtype=torch.float32)
        for packed in pack(new, None, every_size=self.training):
            result[packed.rows] += self._of_tokens(packed, x, xt, context).sum(dim=-1)
        return result

    def read(
        self, x: Int[Tensor, "b l"], xt: Int[Tensor, "b l"], context: Float[Tensor, "b l h"]
    ) -> Float[Tensor, "b l h"]:
        """The features of each new position, corrected for the new tokens of x before it: ONE pass of the head."""
        new, whole = new_positions(x[:, None], xt, self.mask)
        corrected = torch.zeros_like(context)
        for packed in pack(new, None, every_size=self.training):
            rows, place = torch.nonzero(packed.valid, as_tuple=True)
            features = self._corrected(packed, whole[packed.rows], xt[packed.rows], context)[:, 0]
            corrected[packed.rows[rows], packed.positions[rows, place]] = features[rows, place]
        return corrected

    def log_p_of(
        self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], x: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l"]:
        """log p_c of the tokens of x at the selected new positions, 0 elsewhere, from what `read` gave."""
        return self._denoiser[0].log_p_of(features, where, x)

    def distribution(self, features: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """log p_c of every token at the selected new positions."""
        return self._denoiser[0].log_p(features, where)

    @torch.no_grad()
    def drawing(
        self,
        xt: Int[Tensor, "b l"],
        where: Bool[Tensor, "b l"],
        context: Float[Tensor, "b l h"],
        u: Float64[Tensor, "b l"],
    ) -> Bites[tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]]:
        """x_U ~ p_c(. | x_t) exactly, position by position in reading order; x_t elsewhere. With log p_c of each."""
        x, log_p = xt.clone(), torch.zeros(xt.shape, device=xt.device)
        for packed in pack(where, None, every_size=self.training):
            # Whole multiples of rows: with fewer, BLAS would make a row's last bits depend on how many there are.
            packed = packed.padded(ROWS_MULTIPLE)
            rows, at = packed.rows, packed.positions
            seen = [KVCache(len(rows), at.shape[1], layer, self.norm.weight) for layer in self.layers]
            features = context[rows[:, None], at]
            given = self.features(features) + self._known_right(at, xt[rows])
            last = torch.full_like(rows, self.mask + 1)
            # In sharded training every worker must make the same calls, so there places that are not new have theirs.
            for i in range(at.shape[1] if self.training else int(packed.valid.sum(dim=1).max())):
                here = at[:, i : i + 1]
                z = given[:, i : i + 1] + self.last(last)[:, None] + self._settled_left(here, x[rows])
                turn = self.layers.turn(here)
                for layer, passed in zip(self.layers, seen, strict=True):
                    z = layer.extend(z, turn, passed)
                corrected = features[:, i] + self.correction(self.norm(z))[:, 0]
                tokens, found = self._denoiser[0].readout.draw(corrected, u[rows[:, None], here])
                last, valid = tokens[:, 0], packed.valid[:, i]
                new = rows[valid], here[valid, 0]
                x[new], log_p[new] = last[valid], found[valid, 0]
                yield
        return x, log_p

    def _of_tokens(
        self, packed: Packed, x: Int[Tensor, "b k l"], xt: Int[Tensor, "b l"], context: Tensor
    ) -> Float[Tensor, "n k m"]:
        """log p_c of the new token at every packed place, 0 where none is."""
        valid = packed.valid[:, None].expand(-1, x.shape[1], -1)
        corrected = self._corrected(packed, x[packed.rows], xt[packed.rows], context)
        tokens = x[packed.rows[:, None], :, packed.positions].transpose(1, 2)
        log_p = self._denoiser[0].readout.log_p_of(corrected[valid], tokens[valid])
        return torch.zeros(valid.shape, device=log_p.device).masked_scatter(valid, log_p)

    def _corrected(
        self, packed: Packed, x: Int[Tensor, "n k l"], xt: Int[Tensor, "n l"], context: Tensor
    ) -> Float[Tensor, "n k m h"]:
        """The features of the new positions, corrected for the new tokens before each."""
        at, k = packed.positions, x.shape[1]
        at_k = at.repeat_interleave(k, 0)
        features = context[packed.rows[:, None], at][:, None]
        x = x.flatten(0, 1)
        last = F.pad(x.gather(1, at_k)[:, :-1], (1, 0), value=self.mask + 1)
        given = (self.features(features[:, 0]) + self._known_right(at, xt)).repeat_interleave(k, 0)
        z = given + self.last(last) + self._settled_left(at_k, x)
        turn = self.layers.turn(at_k)
        for layer in self.layers:
            z = layer(z, turn, causal=True)  # padding stands behind all that is valid, where nobody looks
        return features + self.correction(self.norm(z)).unflatten(0, (-1, k))

    def _settled_left(self, at: Int[Tensor, "n m"], x: Int[Tensor, "n l"]) -> Float[Tensor, "n m h"]:
        """The tokens of x to the left of each place, new ones included."""
        beside = self.left(_beside(at, x, -1, self.mask + 1))
        return beside + self._near(at, x, self.further_left, 0) if self.further_left else beside

    def _known_right(self, at: Int[Tensor, "n m"], xt: Int[Tensor, "n l"]) -> Tensor | float:
        """What x_t holds to the right of each place; a new token is a mask there."""
        return self._near(at, xt, self.right, len(self.further_left)) if self.right else 0.0

    def _near(self, at: Tensor, x: Tensor, offsets: range, table: int) -> Float[Tensor, "n m h"]:
        """The sum of what the tables from `table` on hold for the tokens at `offsets` from each place."""
        assert self.near is not None
        return self.near(at, x, offsets, table)


class Neighbours(nn.Module):
    """A table of vectors for each of several offsets, one after the other in one weight."""

    def __init__(self, tables: int, ids: int, width: int) -> None:
        super().__init__()
        self.ids = ids
        self.weight = nn.Parameter(torch.randn(tables * ids, width))

    def forward(
        self, at: Int[Tensor, "n m"], x: Int[Tensor, "n l"], offsets: range, table: int
    ) -> Float[Tensor, "n m h"]:
        """The sum over `offsets` of the vectors of their tokens, the first in this table; an edge is the last id.

        Added up one at a time: [n, m, offsets, h] never exists, and a place's bits do not depend on other places.
        Taken apart once, the weight gets one gradient of its size, and not one for each offset.
        """
        tables = self.weight.unflatten(0, (-1, self.ids)).unbind()[table : table + len(offsets)]
        total = torch.zeros((), device=x.device)
        for offset, one in zip(offsets, tables, strict=True):
            total = total + embedded(_beside(at, x, offset, self.ids - 1), one).float()
        return total.to(self.weight.dtype)


def _beside(at: Int[Tensor, "n m"], x: Int[Tensor, "n l"], offset: int, edge: int) -> Int[Tensor, "n m"]:
    """The token of x at `offset` from each place, `edge` beyond the canvas."""
    place = at + offset
    inside = place.clamp(0, x.shape[1] - 1)
    return torch.where(place == inside, x.gather(1, inside), edge)
