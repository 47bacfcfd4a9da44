"""Multi-head attention: torch's fused kernel, except where plain products are faster."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edlm.models.row_invariance import RowInvariantLinear, linear, padded, unpadded

BY_ROW = 128  # positions of a row: with fewer, a call of the kernel per row takes what half of the queries saves
PLACES_MULTIPLE = 4  # else scratch memory is aligned in some threads only, and last bits depend on it


class Projection(RowInvariantLinear):
    """Joint projection of positions to queries, keys and values: one weight, which sharded training gathers once."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - two tensors, given an index
        self, input: Float[Tensor, "b l h"], index: tuple[Int[Tensor, " n"], ...] | None = None
    ):
        """Return all three at every position or, given an `index`, queries at it, and keys and values everywhere."""
        if index is None:
            return super().forward(input)
        queries = self.in_features
        return linear(input[index], self.weight[:queries]), linear(input, self.weight[queries:])


def attend(
    q: Float[Tensor, "b a m c"],
    k: Float[Tensor, "b a l c"],
    v: Float[Tensor, "b a l c"],
    seen: Bool[Tensor, "b a m l"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "b a m c"]:
    """Compute softmax(q k^T / sqrt(c)) v over the `seen` positions (None: all; if `causal`, none after the query).

    torch's fused attention gains nothing from a CPU's bfloat16 products. There the scores are computed explicitly, as
    long as they take no more memory than the four times wider hidden layer of an MLP: l <= 4 c.
    """
    # Independent of the number of rows: a row's bits must not depend on the other rows of its batch.
    short = q.shape[-2] == k.shape[-2] <= 4 * q.shape[-1]
    unrestricted = seen is None and not causal and dropout == 0
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and short and unrestricted and not torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        return scores.softmax(dim=-1) @ v  # summed in float32
    if q.device.type == "cpu" and dropout == 0 and (seen is None or seen.shape[-2] == 1):
        attended = F.scaled_dot_product_attention(padded(q, PLACES_MULTIPLE), k, v, seen, is_causal=causal)
        return unpadded(attended, q.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, seen, dropout, causal)


def attends_at(x: Float[Tensor, "b l h"]) -> bool:
    """Return whether `attend_at` is faster than all queries: on a GPU, many small kernels are not."""
    return x.device.type == "cpu" and x.shape[1] >= BY_ROW and not torch.compiler.is_compiling()


def attend_at(
    q: Float[Tensor, "a n c"], k: Float[Tensor, "b a l c"], v: Float[Tensor, "b a l c"], rows: Int[Tensor, " n"]
) -> Float[Tensor, "a n c"]:
    """Compute `attend` of n queries, each to all positions of its row; `rows` is ascending.

    Without any query the result still depends on k and v, so that sharded training, which counts the gradients of a
    module's outputs, counts the same on every worker.
    """
    counts = torch.bincount(rows, minlength=len(k)).tolist()
    by_row = zip(q.split(counts, dim=1), k.split(1), v.split(1), strict=True)
    attended = [attend(queries[None], keys, values)[0] for queries, keys, values in by_row if queries.shape[1]]
    return torch.cat(attended or [q, k[0, :, :0], v[0, :, :0]], dim=1)
