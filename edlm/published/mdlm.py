"""Denoiser of MDLM's layout (Sahoo et al. 2024), which those of EDLM and SEDD share."""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from edlm.config import config
from edlm.models.denoiser import AbstractDenoiser, AbstractDenoiserConfig
from edlm.models.float32_summed_layers import Embedding
from edlm.models.readout import LMHead
from edlm.published.conditioning import PublishedTransformerConfig, published_transformer


class MaskedLMHead(LMHead):
    """LM head that has a row for the mask, last, and gives it probability zero (SUBS): the row is not read."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__(width, vocabulary + 1)

    def logits(self, features: Float[Tensor, "n h"], weight: Tensor, bias: Tensor) -> Float[Tensor, "n v"]:
        return super().logits(features, weight[:-1], bias[:-1])


class MDLMDenoiser(AbstractDenoiser):
    """MDLM's denoiser: a bidirectional transformer whose layers are modulated by the noise, or by constants."""

    def __init__(self, config: PublishedTransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.width, self.vocabulary, self.mask = config, config.width, vocabulary, vocabulary
        self.embedding = Embedding(vocabulary + 1, config.width)
        self.transformer = published_transformer(config)
        self.readout = MaskedLMHead(config.width, vocabulary)

    def read(self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"]) -> Float[Tensor, "b l h"]:
        return self.transformer(self.embedding(xt), t)

    def read_at(
        self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], where: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l h"]:
        """Compute the features at the selected positions only, for less work; the others are unspecified."""
        return self.transformer(self.embedding(xt), t, where)

    def read_within(
        self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], documents: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l h"]:
        return self.transformer(self.embedding(xt), t, documents=documents)

    def features_at(
        self,
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        index: tuple[Int[Tensor, " n"], ...],
        documents: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "n h"]:
        return self.transformer.at(self.embedding(xt), t, index, documents)


@config
class MDLMDenoiserConfig(PublishedTransformerConfig, AbstractDenoiserConfig):
    """Denoiser of MDLM's layout; `python -m workflows.import_published` makes one of a published checkpoint."""

    kind: Literal["mdlm"] = "mdlm"

    def build(self, vocabulary: int) -> MDLMDenoiser:
        return MDLMDenoiser(self, vocabulary)
