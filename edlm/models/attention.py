"""Multi-head attention: torch's fused kernel, except where plain products are faster."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from edlm.models.row_invariance import padded, unpadded

PLACES_MULTIPLE = 4  # else scratch memory is aligned in some threads only, and last bits depend on it


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
