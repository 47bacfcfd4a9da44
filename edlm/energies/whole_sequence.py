"""The paper's energies, functions of a whole sequence: `bidirectional` (NCE), `ar` and `coar` (EDLM sec. 4)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm import equations
from edlm.config import ConfigurationError, config
from edlm.cooperative_work import Cooperative
from edlm.device_copies import sent
from edlm.energies.configuration import AbstractEnergyConfig, required
from edlm.interfaces import AbstractEnergy
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser, Denoiser
from edlm.models.float32_summed_layers import Embedding
from edlm.models.readout import ScalarHead
from edlm.models.row_invariance import linear
from edlm.models.transformer import Transformer


class BidirectionalEnergy(AbstractEnergy):
    """The paper's NCE energy on whole sequences: a transformer over x_t and x_0, mean-pooled (EDLM sec. 4.2).

    Initialised as the denoiser: the projection passes x_0 through and the head is zero, so step 0 is plain diffusion.
    """

    whole_sequence = True

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        width = denoiser.config.width
        self.embedding = Embedding(denoiser.vocabulary + 1, width)
        self.project = PairProjection(width)
        self.transformer = Transformer(denoiser.config, causal=False)
        self.scalar = ScalarHead(width)
        self.embedding.load_state_dict(denoiser.embedding.state_dict())
        self.transformer.load_state_dict(denoiser.transformer.state_dict())

    def forward(self, x, xt, t, log_p, context):
        k = x.shape[1]
        pair = self.project(self.embedding(xt)[:, None], self.embedding(x))
        features = self.transformer(pair.flatten(0, 1), t.repeat_interleave(k))
        return self.scalar(features.mean(dim=1)).unflatten(0, (-1, k))[..., None]


@config
class BidirectionalEnergyConfig(AbstractEnergyConfig):
    """The paper's whole-sequence energy, of the denoiser's size."""

    network = BidirectionalEnergy
    kind: Literal["bidirectional"] = "bidirectional"

    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> BidirectionalEnergy:
        if not isinstance(denoiser, Denoiser):
            raise ConfigurationError(
                f"energy {self.kind!r} starts as a copy of the denoiser's transformer, and a {type(denoiser).__name__} "
                "is another network; train an energy of kind step or conditional, which read its features"
            )
        return BidirectionalEnergy(denoiser)


class PairProjection(nn.Module):
    """Linear projection of `[first; second]`; many `second` may share one `first`. Initialised to return `second`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([torch.zeros(width, width), torch.eye(width)], dim=1))

    def forward(self, first: Float[Tensor, "*#b h"], second: Float[Tensor, "*#b h"]) -> Float[Tensor, "*b h"]:
        weight_first, weight_second = self.weight.chunk(2, dim=1)
        return linear(first, weight_first) + linear(second, weight_second)


class AutoregressiveEnergy(AbstractEnergy):
    """`ar`: E = -log p_AR(x_0) + log p_theta(x_0 | x_t), over all positions (EDLM sec. 4.1). Z is not tractable."""

    whole_sequence = True

    def __init__(self, model: AbstractAutoregressiveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x, xt, t, log_p, context):
        return log_p - self.model.log_p(x.flatten(0, 1)).sum(dim=-1).unflatten(0, x.shape[:2])[..., None]


@config
class AutoregressiveEnergyConfig(AbstractEnergyConfig):
    """The paper's energy `ar`: no training beyond the autoregressive model."""

    network = AutoregressiveEnergy
    built_on = AbstractAutoregressiveModel
    trained = False
    kind: Literal["ar"] = "ar"

    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> AutoregressiveEnergy:
        return AutoregressiveEnergy(required(AbstractAutoregressiveModel, base, self.kind))


class CarryOverEnergy(AbstractEnergy):
    """`coar`: as `ar`, but only masked positions count, in both terms: Z = 1 exactly (EDLM sec. 4.1).

    Its distribution fills ALL masked positions in reading order, each from the tokens to its left. The distribution of
    U alone is a sum over the rest, so samplers draw every masked position up to the last one of U.
    """

    whole_sequence = True
    takes_positions = True
    normalised = True
    additive = True

    def __init__(self, model: AbstractAutoregressiveModel, mask: int) -> None:
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, x, xt, t, log_p, context, new=None):
        masked = xt == self.mask if new is None else new
        where = masked[:, None].expand_as(x).flatten(0, 1)
        by_position = self.model.log_p(x.flatten(0, 1), where)
        (where,) = sent([where], x.device)
        return log_p - equations.carry_over_log_p(by_position, where).unflatten(0, x.shape[:2])[..., None]

    def draw(
        self, xt: Int[Tensor, "b l"], where: Bool[Tensor, "b l"], context: Tensor, u: Float64[Tensor, "b l"]
    ) -> Cooperative[tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]]:
        """Draw the selected positions, each given the tokens to its left; return tokens and log-probabilities.

        They are x_t and 0 elsewhere. The denoiser's context is not used.
        """
        return self.model.fill(xt, where, u)

    def read(
        self, x: Int[Tensor, "b l"], xt: Int[Tensor, "b l"], context: Tensor, new: Bool[Tensor, "b l"] | None = None
    ) -> Tensor:
        """Compute the autoregressive model's features of a speculative draft, for `log_p_of` and `distribution`."""
        return self.model.read(x)

    def log_p_of(self, features: Tensor, where: Bool[Tensor, "b l"], x: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Return log p of the tokens of x at the selected positions, 0 elsewhere."""
        return self.model.log_p_of(features, where, x)

    def distribution(self, features: Tensor, where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """Return log p of every token at the selected positions."""
        return self.model.distribution(features, where)


@config
class CarryOverEnergyConfig(AbstractEnergyConfig):
    """The paper's energy `coar`: no training beyond the autoregressive model."""

    network = CarryOverEnergy
    built_on = AbstractAutoregressiveModel
    trained = False
    kind: Literal["coar"] = "coar"

    def build(self, denoiser: AbstractDenoiser, base: nn.Module | None = None) -> CarryOverEnergy:
        return CarryOverEnergy(required(AbstractAutoregressiveModel, base, self.kind), denoiser.mask)
