"""Denoiser p_theta(x_0 | x_t): all masked tokens are predicted in parallel and independently."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm.config import ConfigurationError, config
from edlm.device_copies import selected_indices
from edlm.models.float32_summed_layers import Embedding
from edlm.models.readout import LMHead
from edlm.models.repeated_tokens import embed
from edlm.models.transformer import Transformer, TransformerConfig


class AbstractDenoiser(nn.Module):
    """Network over tokens 0..vocabulary-1 and the mask, whose id is `vocabulary`; its LM head reads the features.

    A subclass sets the attributes and computes the features.
    """

    width: int
    """Channels of the features."""
    vocabulary: int
    """Number of tokens, without the mask."""
    mask: int
    """Id of the mask: `vocabulary`."""
    readout: LMHead
    """LM head, also that of a conditional energy, which corrects the features."""

    @abstractmethod
    def read(self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"]) -> Float[Tensor, "b l h"]:
        """Compute the features of x_t: ONE network pass, shared by the candidates and every energy built on them."""

    def read_within(
        self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], documents: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l h"]:
        """Compute the features of x_t if positions attend only to those of the same document (index).

        Raise ConfigurationError if this network cannot.
        """
        raise ConfigurationError(
            f"{type(self).__name__} attends across documents; leave data.attention at across_documents"
        )

    def features_at(
        self,
        xt: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        index: tuple[Int[Tensor, " n"], ...],
        documents: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "n h"]:
        """Compute the features of x_t at n selected positions, given as (rows, positions); `documents` as above.

        For training, which reads no others: a subclass may leave work out that only they need.
        """
        context = self.read(xt, t) if documents is None else self.read_within(xt, t, documents)
        return context[index]

    def log_p(self, context: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """Return log p_theta(x_0 | x_t) at the selected masked positions, in (b, l) order; float32.

        The whole [n v] is returned: select few positions at a time if the vocabulary is large.
        `where` may be on the host, so that its number of positions is known there.
        """
        return self.readout.distribution(context[selected_indices(where, context.device)])

    def log_p_of(
        self, context: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], x0: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l"]:
        """Return log p_theta of the tokens x_0 at the selected positions, 0 elsewhere; the vocabulary in chunks."""
        indices = selected_indices(where, context.device)
        log_p = self.readout.log_p_of(context[indices], x0[indices])
        return torch.zeros(x0.shape, device=log_p.device).index_put(indices, log_p)

    def draw(
        self, context: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "n k"]
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Draw k tokens per selected position with their log-probabilities; the vocabulary in chunks."""
        return self.readout.draw(context[selected_indices(where, context.device)], u)


class AbstractDenoiserConfig(ABC):
    """Settings of a denoiser's network; a subclass stands in the file of its network and in the union of kinds.

    The union is `edlm.checkpoints.network_kinds.DenoiserConfig`.
    """

    @abstractmethod
    def build(self, vocabulary: int) -> AbstractDenoiser:
        """Build the network with fresh weights, drawn from torch's random state."""


class Denoiser(AbstractDenoiser):
    """Bidirectional transformer."""

    def __init__(self, config: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.width, self.vocabulary, self.mask = config, config.width, vocabulary, vocabulary
        self.embedding = Embedding(vocabulary + 1, config.width)
        self.transformer = Transformer(config, causal=False)
        self.readout = LMHead(config.width, vocabulary)

    def read(self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"]) -> Float[Tensor, "b l h"]:
        return self.transformer(self.embedding(xt), t)

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
        x, repeated = embed(self.embedding, xt)
        return self.transformer.at(x, t, index, documents, repeated)

    def read_at(
        self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], where: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l h"]:
        """Compute the features at the selected positions only, for less work; the others are unspecified."""
        return self.transformer(self.embedding(xt), t, where)


@config
class TransformerDenoiserConfig(TransformerConfig, AbstractDenoiserConfig):
    """Bidirectional transformer of this project."""

    kind: Literal["transformer"] = "transformer"

    def build(self, vocabulary: int) -> Denoiser:
        return Denoiser(self, vocabulary)
