"""Documents of packed rows: which positions of a row belong together, for attention within documents."""

from jaxtyping import Bool, Int
from torch import Tensor


def document_index(tokens: Int[Tensor, "b l"], separator: int) -> Int[Tensor, "b l"]:
    """Return the index in its row, from 0, of the document of each token; a separator is the last token of its own."""
    ends = (tokens == separator).long()
    return ends.cumsum(dim=1) - ends


def same_document(documents: Int[Tensor, "b l"], causal: bool) -> Bool[Tensor, "b 1 l l"]:
    """Return which positions (last axis) each position may attend to; if `causal`, none after itself. For all heads."""
    same = documents[:, :, None] == documents[:, None, :]
    return (same.tril() if causal else same)[:, None]
