"""Uniform weights, the control of every comparison: k candidates with equal scores."""

import torch

from edlm.interfaces import AbstractEnergy


class Uniform(AbstractEnergy):
    """E = 0: one of k candidates is kept at random, which is plain diffusion for every k, T, window and block.

    Choosing one of k independent draws without reading them gives one draw from the same distribution. The bound is
    that of plain diffusion too, text by text: log(k v_1 / sum_j v_j) = 0. So any gain that a sampler has with this
    energy as with a scoring one is due to the sampler (its precision, its steps, its calls), not to the energy.
    `whole_sequence` and `block` are those of the energy it is compared with; block None is one group, the whole canvas.
    """

    def __init__(self, whole_sequence: bool = True, block: int | None = None) -> None:
        super().__init__()
        if block is not None and block < 1:
            raise ValueError(f"block is {block}; give the number of positions of a block, or None for the whole canvas")
        self.whole_sequence, self.block = whole_sequence, block

    def forward(self, x, xt, t, log_p, context):
        return torch.zeros_like(log_p)
