"""The denoiser p_theta(x_0 | x_t): every masked token predicted at once, each on its own."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from edlm.models.readout import LMHead
from edlm.models.token_sums import Embedding
from edlm.models.transformer import Transformer, TransformerConfig


class Denoiser(nn.Module):
    """A bidirectional transformer over tokens 0..vocabulary-1 and the mask, whose id is `vocabulary`."""

    def __init__(self, trunk: TransformerConfig, vocabulary: int) -> None:
        super().__init__()
        self.trunk, self.vocabulary, self.mask = trunk, vocabulary, vocabulary
        self.embedding = Embedding(vocabulary + 1, trunk.width)
        self.transformer = Transformer(trunk, causal=False)
        self.readout = LMHead(trunk.width, vocabulary)

    def read(self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"]) -> Float[Tensor, "b l h"]:
        """The features of x_t: ONE network pass, shared by the drafts and by every energy built on them."""
        return self.transformer(self.embedding(xt), t)

    def read_at(
        self, xt: Int[Tensor, "b l"], t: Float[Tensor, " b"], where: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l h"]:
        """The same at the selected positions alone, for less work; zeros elsewhere."""
        return self.transformer(self.embedding(xt), t, where)

    def log_p(self, context: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"]) -> Float[Tensor, "n v"]:
        """log p_theta(x_0 | x_t) at the selected masked positions, in (b, l) order; float32.

        The whole [n v] is returned: ask for few positions at a time where the vocabulary is large.
        """
        return self.readout.distribution(context[where])

    def log_p_of(
        self, context: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], x0: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b l"]:
        """log p_theta of the tokens x_0 at the selected positions, 0 elsewhere; the vocabulary in chunks."""
        log_p = self.readout.log_p_of(context[where], x0[where])
        return torch.zeros(x0.shape, device=log_p.device).masked_scatter(where, log_p)

    def draw(
        self, context: Float[Tensor, "b l h"], where: Bool[Tensor, "b l"], u: Float64[Tensor, "n k"]
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """k tokens for each selected position and their log-probabilities; the vocabulary in chunks."""
        return self.readout.draw(context[where], u)
