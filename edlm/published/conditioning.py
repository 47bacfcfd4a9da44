"""Time conditioning of the published networks (DiT, Peebles and Xie 2023; as in SEDD, MDLM and EDLM)."""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from edlm.config import Fraction, Positive, config
from edlm.models.conditioning import TimeConditioning, TimeEmbedding
from edlm.models.row_invariance import RowInvariantLinear
from edlm.models.transformer import Transformer, TransformerConfig

SINUSOIDS = 256
LONGEST_PERIOD = 10_000.0


@config
class PublishedTransformerConfig(TransformerConfig):
    """Size of a published bidirectional transformer."""

    time_conditioning: bool = False
    """Whether the network reads the noise sigma(t) = -log(1 - (1 - `eps`) t). Without, it reads sigma = 0 at every t:
    its layers are modulated all the same, by constants."""
    conditioning_width: Positive = 128
    """Channels of the embedded noise."""
    eps: Fraction = 1e-3
    """Share of the tokens that is clean at t = 1 in the published log-linear schedule, which keeps sigma finite."""


class NoiseEmbedding(TimeEmbedding):
    """Embedding of sigma(t), or of 0: 256 sinusoids, cosines first, mixed by two layers; then SiLU."""

    def __init__(self, config: PublishedTransformerConfig) -> None:
        nn.Module.__init__(self)
        self.reads_time, self.eps = config.time_conditioning, config.eps
        self.first = RowInvariantLinear(SINUSOIDS, config.conditioning_width)
        self.second = RowInvariantLinear(config.conditioning_width, config.conditioning_width)

    def _mixed(self, t: Float[Tensor, "b 1"], dtype: torch.dtype) -> Float[Tensor, "b c"]:
        half = SINUSOIDS // 2
        period = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, device=t.device) / half)
        # Per sinusoid, though it is the same for all: a row of one number would be row-variant (`WIDE_ROWS`).
        # In float64: near t = 1, float32 would keep five digits of `eps`.
        noise = -torch.log1p((self.eps - 1) * t.double().expand(-1, half)) if self.reads_time else torch.zeros_like(t)
        angle = noise.float() * period
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return F.silu(self.second(F.silu(self.first(waves.to(dtype)))))


class NoiseAdaLN(nn.Module):
    """Layer normalisation with a learned scale, then scale, shift and (of three `parts`) gate computed from the noise.

    In float32. Everything computed from the noise is zero before training.
    """

    def __init__(self, width: int, conditioning_width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.weight = nn.Parameter(torch.ones(width))
        self.modulate = RowInvariantLinear(conditioning_width, parts * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Float[Tensor, "b l h"], condition: Float[Tensor, "b c"]) -> tuple[Tensor, Tensor | float]:
        shift, scale, *gate = self.modulate(condition)[:, None].chunk(self.parts, dim=-1)
        normalised = F.layer_norm(x.float(), self.weight.shape) * self.weight.float()
        return (normalised * (1 + scale.float()) + shift.float()).to(x.dtype), gate[0] if gate else 1.0


def published_transformer(config: PublishedTransformerConfig) -> Transformer:
    """Return a bidirectional transformer with fresh weights, a function of tokens and noise."""
    norm = functools.partial(NoiseAdaLN, config.width, config.conditioning_width)
    conditioning = TimeConditioning(
        functools.partial(NoiseEmbedding, config), functools.partial(norm, 3), functools.partial(norm, 2)
    )
    transformer = Transformer(config, causal=False, conditioning=conditioning)
    for layer in transformer.layers:  # its gates are zero: were these zero, too, neither would ever have a gradient
        nn.init.normal_(layer.out.weight, std=config.width**-0.5)
        nn.init.normal_(layer.down.weight, std=layer.down.in_features**-0.5)
    return transformer
