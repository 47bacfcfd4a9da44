"""The control of every comparison: k candidates that are all weighed alike."""

import torch

from edlm.interfaces import AbstractEnergy


class Uniform(AbstractEnergy):
    """E = 0: one of k candidates is kept at random, and the law is plain diffusion's for every k, T, window and block.

    A draw that is chosen from k independent ones without a look at them is a draw. Its bound is plain diffusion's as
    well, text by text: log(k v_1 / sum_j v_j) = 0. So what a sampler with this energy shares with one that weighs is
    owed to the sampler (its precision, its steps, its calls), and not to the energy. `whole_sequence` and `block` are
    those of the energy it stands beside; block None is one group, the whole canvas.
    """

    def __init__(self, whole_sequence: bool = True, block: int | None = None) -> None:
        super().__init__()
        if block is not None and block < 1:
            raise ValueError(f"block is {block}; give the number of positions of a block, or None for the whole canvas")
        self.whole_sequence, self.block = whole_sequence, block

    def forward(self, x, xt, t, log_p, context):
        return torch.zeros_like(log_p)
