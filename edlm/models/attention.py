"""Attention of all heads at once: torch's own, except where plain products are faster."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from edlm.models.row_invariance import padded

PLACES_MULTIPLE = 4  # else scratch memory is aligned in some threads alone, and last bits depend on it


def attend(
    q: Float[Tensor, "b a m c"],
    k: Float[Tensor, "b a l c"],
    v: Float[Tensor, "b a l c"],
    seen: Bool[Tensor, "b a m l"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "b a m c"]:
    """softmax(q k^T / sqrt(c)) v over the places that are `seen` (None: all), of a causal pass over those before.

    torch's fused attention gains nothing from a processor's bfloat16 products. There everything is multiplied out,
    as long as the scores take no more room than the four times wider middle of an MLP: l <= 4 c.
    """
    # Not a question of how many rows there are: a row's bits must not depend on its batch mates.
    short = q.shape[-2] == k.shape[-2] <= 4 * q.shape[-1]
    whole = seen is None and not causal and dropout == 0
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and short and whole and not torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        return scores.softmax(dim=-1) @ v  # summed in float32
    if q.device.type == "cpu" and dropout == 0 and (seen is None or seen.shape[-2] == 1):
        places = q.shape[-2]
        q = padded(q, PLACES_MULTIPLE)
        return F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal)[..., :places, :]
    return F.scaled_dot_product_attention(q, k, v, seen, dropout, causal)
