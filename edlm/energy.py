"""Residual energies E(x_0, x_t, t): ours on what a step keeps, and the paper's on whole drafts.

    p(x | x_t) is proportional to p_theta(x | x_t) exp(-E(x, x_t, t)): LOW energy is likely text.

Every energy is called alike; what it is a function of differs, and `drafts` says which:
  step energies (`drafts` False) see this step's new tokens and masks elsewhere (docs/mathematics.md 3.3, 3.4);
  whole-draft energies (`drafts` True) see every position filled (EDLM sec. 4).
"""

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm import equations
from edlm.autoregressive import AutoregressiveModel
from edlm.config import ConfigurationError, Positive, config
from edlm.denoiser import Denoiser
from edlm.packing import SMALLEST, Packed, pack
from edlm.transformer import Layer, ScalarHead, Transformer


class AbstractEnergy(nn.Module):
    """An energy; anything callable with this signature and these attributes serves, a lookup table too."""

    drafts: bool
    block: int | None = None
    normalised: bool = False  # True: Z = 1 exactly, and `draw` samples p_theta exp(-E) itself

    @abstractmethod
    def forward(
        self,
        x: Int[Tensor, "b k l"],
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        log_p: Float[Tensor, "b k g"],
        context: Float[Tensor, "b l h"],
    ) -> Float[Tensor, "b k g"]:
        """E of k candidates of each sequence, by group.

        `log_p` is log p_theta of the candidates' drawn tokens, summed by group; `context` is what the denoiser read in
        x_t. Candidates of one sequence fill the same positions; where x_t is not masked, x_t is read.
        """


class StepEnergy(AbstractEnergy):
    """Ours: a light head on the denoiser's features, summed over each block's new positions (docs/mathematics.md 3.3).

    At each new position the head gets its own token and those to the left and right, known, new in the same block, or
    masked; the tokens of other blocks are masks to it, so that given x_t blocks are independent. The output is zero
    before training: step 0 is plain diffusion.
    """

    drafts = False

    def __init__(self, width: int, layers: int, heads: int, block: int | None, denoiser: Denoiser) -> None:
        super().__init__()
        self.block, self.mask = block, denoiser.mask
        self.features = nn.Linear(denoiser.trunk.width, width)
        # one more id than the denoiser has: the edge of the canvas
        self.own, self.left, self.right = (nn.Embedding(denoiser.vocabulary + 2, width) for _ in range(3))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.scalar = ScalarHead(width)

    def forward(self, x, xt, t, log_p, context):
        b, k, length = x.shape
        new, x = _new_positions(x, xt, self.mask)
        energy = context.new_zeros(b, k, equations.group_count(length, self.block), dtype=torch.float32)
        for packed in pack(new, self.block, one_size=self.training):
            energy[packed.rows, :, packed.groups] = self._weigh(packed, x, xt, context)
        return energy

    def _weigh(self, packed: Packed, x: Tensor, xt: Tensor, context: Tensor) -> Float[Tensor, "n k"]:
        rows, at, valid = packed.rows, packed.positions, packed.valid
        k = x.shape[1]
        z = self.features(context[rows[:, None], at])[:, None]  # the same for all candidates
        z = z + self.own(x[rows[:, None], :, at].transpose(1, 2))
        z = z + self.left(self._neighbour(packed, x, xt, -1)) + self.right(self._neighbour(packed, x, xt, +1))
        z, at_k, valid_k = z.flatten(0, 1), at.repeat_interleave(k, 0), valid.repeat_interleave(k, 0)
        for layer in self.layers:
            z = layer(z, at_k, valid=valid_k)
        return (self.scalar(self.norm(z)) * valid_k).sum(dim=-1).unflatten(0, (-1, k))

    def _neighbour(self, packed: Packed, x: Tensor, xt: Tensor, offset: int) -> Int[Tensor, "n k m"]:
        """The token beside each position; masked if it is new in another block, a special id beyond the edge."""
        length = xt.shape[1]
        rows, at = packed.rows[:, None], packed.positions + offset
        inside = at.clamp(0, length - 1)
        token = x[rows, :, inside].transpose(1, 2)
        if self.block is not None:
            foreign = inside // self.block != packed.positions // self.block
            token = torch.where(foreign[:, None], xt[rows, inside][:, None], token)
        beyond = (at < 0) | (at >= length)
        return torch.where(beyond[:, None], self.mask + 1, token)


class ConditionalEnergy(AbstractEnergy):
    """Ours (docs/mathematics.md 3.4): E = log p_theta(x_U | x_t) - log p_c(x_U | x_t), Z = 1 exactly.

    p_c goes through the new positions in reading order. Its logits are the denoiser's plus a correction, zero before
    training, from light causal layers over the features of x_t, the token to the left and the last new token.
    It is added to the features, before the denoiser's own readout: no second vocabulary matrix.
    """

    drafts = False
    normalised = True

    def __init__(self, width: int, layers: int, heads: int, denoiser: Denoiser) -> None:
        super().__init__()
        self.mask = denoiser.mask
        self._denoiser = (denoiser,)  # in a tuple: borrowed, not a part of this module and not saved with it
        self.features = nn.Linear(denoiser.trunk.width, width)
        self.left, self.last = (nn.Embedding(denoiser.vocabulary + 2, width) for _ in range(2))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.correction = nn.Linear(width, denoiser.trunk.width, bias=False)
        nn.init.zeros_(self.correction.weight)

    def forward(self, x, xt, t, log_p, context):
        return log_p - self.log_p(x, xt, context)[..., None]

    def log_p(
        self, x: Int[Tensor, "b k l"], xt: Int[Tensor, "b l"], context: Float[Tensor, "b l h"]
    ) -> Float[Tensor, "b k"]:
        """log p_c(x_U | x_t) of each candidate; U is where x_t is masked and x is not."""
        b, k, _ = x.shape
        new, x = _new_positions(x, xt, self.mask)
        result = context.new_zeros(b, k, dtype=torch.float32)
        for packed in pack(new, None, one_size=self.training):
            rows, at, valid = packed.rows[:, None], packed.positions, packed.valid[:, None].expand(-1, k, -1)
            corrected = self._corrected(packed, x[packed.rows], context)
            tokens = x[rows, :, at].transpose(1, 2)
            log_p = self._denoiser[0].readout.log_p_of(corrected[valid], tokens[valid])
            whole = torch.zeros(valid.shape, device=log_p.device).masked_scatter(valid, log_p)
            result[packed.rows] = whole.sum(dim=-1)
        return result

    @torch.no_grad()
    def draw(
        self,
        xt: Int[Tensor, "b l"],
        where: Bool[Tensor, "b l"],
        context: Float[Tensor, "b l h"],
        u: Float64[Tensor, "b l"],
    ) -> Int[Tensor, "b l"]:
        """x_U ~ p_c(. | x_t) exactly, position by position in reading order; x_t elsewhere."""
        x = xt.clone()
        for packed in pack(where, None):
            rows, at = packed.rows, packed.positions
            for i in range(at.shape[1]):
                # A prefix of whole multiples: what stands behind place i is not looked at (causal).
                end = (i // SMALLEST + 1) * SMALLEST
                prefix = Packed(rows, packed.groups, at[:, :end], packed.valid[:, :end])
                features = self._corrected(prefix, x[rows][:, None], context)[:, 0, i]
                tokens, _ = self._denoiser[0].readout.draw(features, u[rows, at[:, i]][:, None])
                here = packed.valid[:, i]
                x[rows[here], at[here, i]] = tokens[here, 0]
        return x

    def _corrected(self, packed: Packed, x: Int[Tensor, "n k l"], context: Tensor) -> Float[Tensor, "n k m h"]:
        """The features of the new positions, corrected for the new tokens before each."""
        at, k, edge = packed.positions, x.shape[1], self.mask + 1
        features = context[packed.rows[:, None], at][:, None]
        tokens = x.gather(2, at[:, None].expand(-1, k, -1))
        left = x.gather(2, (at - 1).clamp(min=0)[:, None].expand(-1, k, -1))
        left = torch.where((at == 0)[:, None], edge, left)
        last = F.pad(tokens[..., :-1], (1, 0), value=edge)
        z = (self.features(features) + self.left(left) + self.last(last)).flatten(0, 1)
        at_k, valid_k = at.repeat_interleave(k, 0), packed.valid.repeat_interleave(k, 0)
        for layer in self.layers:
            z = layer(z, at_k, causal=True, valid=valid_k)
        return features + self.correction(self.norm(z)).unflatten(0, (-1, k))


class BidirectionalEnergy(AbstractEnergy):
    """The paper's NCE energy on whole drafts: a transformer over x_t and x_0, mean-pooled (EDLM sec. 4.2).

    It begins as the denoiser: the projection passes x_0 through, the head is zero, so step 0 is plain diffusion.
    """

    drafts = True

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        width = denoiser.trunk.width
        self.embedding = nn.Embedding(denoiser.vocabulary + 1, width)
        self.project = nn.Linear(2 * width, width, bias=False)
        self.transformer = Transformer(denoiser.trunk, causal=False)
        self.scalar = ScalarHead(width)
        self.embedding.load_state_dict(denoiser.embedding.state_dict())
        self.transformer.load_state_dict(denoiser.transformer.state_dict())
        with torch.no_grad():
            self.project.weight.copy_(torch.cat([torch.zeros(width, width), torch.eye(width)], dim=1))

    def forward(self, x, xt, t, log_p, context):
        k = x.shape[1]
        pair = torch.cat([self.embedding(xt)[:, None].expand(-1, k, -1, -1), self.embedding(x)], dim=-1)
        features = self.transformer(self.project(pair).flatten(0, 1), t.repeat_interleave(k))
        return self.scalar(features.mean(dim=1)).unflatten(0, (-1, k))[..., None]


class AutoregressiveEnergy(AbstractEnergy):
    """`ar`: E = -log p_AR(x_0) + log p_theta(x_0 | x_t); every position counts (EDLM sec. 4.1). Z is not tractable."""

    drafts = True

    def __init__(self, model: AutoregressiveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x, xt, t, log_p, context):
        return log_p - self.model.log_p(x.flatten(0, 1)).sum(dim=-1).unflatten(0, x.shape[:2])[..., None]


class CarryOverEnergy(AbstractEnergy):
    """`coar`: as `ar`, but only masked positions count, in both terms: Z = 1 exactly (EDLM sec. 4.1)."""

    drafts = True

    def __init__(self, model: AutoregressiveModel, mask: int) -> None:
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, x, xt, t, log_p, context):
        masked = (xt == self.mask)[:, None].expand_as(x).flatten(0, 1)
        by_position = self.model.log_p(x.flatten(0, 1), masked)
        return log_p - equations.carry_over_log_p(by_position, masked).unflatten(0, x.shape[:2])[..., None]


@config
class Step:
    """A step energy in blocks of neighbouring positions (None: one block, the whole canvas)."""

    kind: Literal["step"] = "step"
    block: Positive | None = 8
    width: Positive = 128
    layers: Positive = 1
    heads: Positive = 4

    def build(self, denoiser: Denoiser, autoregressive: AutoregressiveModel | None) -> AbstractEnergy:
        return StepEnergy(self.width, self.layers, self.heads, self.block, denoiser)


@config
class Conditional:
    """A normalised step energy: a light causal head on the denoiser's features."""

    kind: Literal["conditional"] = "conditional"
    width: Positive = 128
    layers: Positive = 2
    heads: Positive = 4

    def build(self, denoiser: Denoiser, autoregressive: AutoregressiveModel | None) -> AbstractEnergy:
        return ConditionalEnergy(self.width, self.layers, self.heads, denoiser)


@config
class Bidirectional:
    """The paper's energy on whole drafts, of the denoiser's size."""

    kind: Literal["bidirectional"] = "bidirectional"

    def build(self, denoiser: Denoiser, autoregressive: AutoregressiveModel | None) -> AbstractEnergy:
        return BidirectionalEnergy(denoiser)


@config
class Autoregressive:
    """The paper's energy `ar`: nothing to train beyond the autoregressive model."""

    kind: Literal["ar"] = "ar"

    def build(self, denoiser: Denoiser, autoregressive: AutoregressiveModel | None) -> AbstractEnergy:
        return AutoregressiveEnergy(_needed(autoregressive, self.kind))


@config
class CarryOver:
    """The paper's energy `coar`: nothing to train beyond the autoregressive model."""

    kind: Literal["coar"] = "coar"

    def build(self, denoiser: Denoiser, autoregressive: AutoregressiveModel | None) -> AbstractEnergy:
        return CarryOverEnergy(_needed(autoregressive, self.kind), denoiser.mask)


EnergyConfig = Step | Conditional | Bidirectional | Autoregressive | CarryOver


def _new_positions(x: Tensor, xt: Tensor, mask: int) -> tuple[Bool[Tensor, "b l"], Int[Tensor, "b k l"]]:
    """U, where x_t is masked and x is not; and x with the known tokens of x_t in place."""
    masked = xt == mask
    return masked & (x[:, 0] != mask), equations.carry_over(xt[:, None].expand_as(x), x, masked[:, None].expand_as(x))


def _needed(model: AutoregressiveModel | None, kind: str) -> AutoregressiveModel:
    if model is None:
        raise ConfigurationError(f"energy {kind!r} is read off an autoregressive model, and none was given")
    return model
