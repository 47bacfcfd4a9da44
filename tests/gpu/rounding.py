"""How far the same numbers from two devices may lie apart, from the bits of a number and the roundings in progress.

Errors of n roundings have random signs, and add up like a random walk: to sqrt(n) times that of one. Tolerances are of
the networks of these tests. Measured on the pretended device, and with uniform noise of twice the error of a rounding
behind every linear map (16 draws an objective), losses and gradient norms in bfloat16 differ by at most 0.011 where no
negatives are drawn, and by 0.074 where some are.
"""

import math

from workflows.benchmarking.pretended_device import NAME

HALF = 2.0**-9  # the largest relative error of rounding to bfloat16's 8 bits
# Norm, queries with keys and values, rotary (3), scores, softmax, their sum, output, add; norm, up, GELU, down, add.
# Around the layers: the embedding, the last norm, the head and its bias.
IN_A_LAYER, AROUND = 15, 4
LAYERS = {  # of all networks that a number comes through: two of the denoiser, and those of the head
    "denoiser": 2, "denoising": 2, "published denoising": 2, "next token": 2, "ar": 2, "coar": 2, "bidirectional": 2,
    "edlm_nce": 2,
    "step": 3, "conditional": 4, "residual": 4,
}  # fmt: skip
# The factor by which a number is smaller than what cancels in it: a mean over all positions, behind which the published
# energy has two more linear maps.
CANCELLED = {"bidirectional": 2, "edlm_nce": 8}
# A rounding may let another negative be drawn. Then a row of the batch of eight has another loss, and at most one does.
OTHER_NEGATIVES = 1 / 8
DRAWING = ("step", "bidirectional", "edlm_nce", "residual")
FLOAT32 = {NAME: 1e-4, "cuda": 1e-3}  # sums in another order


def numbers_tolerance(name: str) -> float:
    """Of what a network puts out in bfloat16, relative to its norm in float32."""
    return CANCELLED.get(name, 1) * HALF * math.sqrt(IN_A_LAYER * LAYERS[name] + AROUND)


def training_tolerance(name: str, device: str, precision: str) -> float:
    """Of losses and gradient norms, relative: gradients come back through as many roundings."""
    if precision == "float32":
        return FLOAT32[device]
    return OTHER_NEGATIVES if name in DRAWING else HALF * math.sqrt(2 * (IN_A_LAYER * LAYERS[name] + AROUND))
