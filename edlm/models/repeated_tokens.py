"""Tokens of a small vocabulary, which recur in a batch: what depends on a token alone is computed once for each."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edlm.models.float32_summed_layers import Embedding, embedded

POSITIONS_PER_TOKEN = 2  # with fewer, spreading the results saves little


@dataclass(frozen=True)
class RepeatedTokens:
    """Ids at every position, and the embedding of each token of the vocabulary."""

    ids: Int[Tensor, "b l"]
    table: Float[Tensor, "v h"]

    def spread(self, of_each: Float[Tensor, "v c"]) -> Float[Tensor, "b l c"]:
        """Return the values of each token at its positions, from one row per token."""
        return embedded(self.ids, of_each)


def recur(positions: int, tokens: int) -> bool:
    """Return whether so many different tokens recur often enough at so many positions."""
    return positions >= POSITIONS_PER_TOKEN * tokens


def embed(embedding: Embedding, ids: Int[Tensor, "b l"]) -> tuple[Float[Tensor, "b l h"], RepeatedTokens | None]:
    """Return the embedded ids and, if tokens recur often enough, what a layer can compute once per token."""
    if not recur(ids.numel(), embedding.num_embeddings):
        return embedding(ids), None
    table = embedding(torch.arange(embedding.num_embeddings, device=ids.device))
    repeated = RepeatedTokens(ids, table)
    return repeated.spread(table), repeated
