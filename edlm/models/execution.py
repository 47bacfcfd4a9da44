"""Execution: how a model's networks are computed when they only run; what is asked of them stays the same."""

from typing import Literal

import torch
from torch import nn

from edlm.config import config
from edlm.models.transformer import Block

# What torch.compile is told: CUDA graphs are its mode "reduce-overhead"; on a processor the tanh of a GELU is a good
# part of a layer, and takes less as a quotient of exponentials.
GRAPHS, QUICK_TANH = {"triton.cudagraphs": True}, {"cpp.use_decompose_tanh": True}
Precision = Literal["float32", "bfloat16"]


@config
class Execution:
    """The defaults are exact and start at once; `workflows.benchmark sample --execution.…` measures the others."""

    precision: Precision = "float32"
    """bfloat16 halves memory, and is slower where the processor does not compute it itself; probabilities and energies
    are reduced in float32 all the same."""
    compiled: bool = False
    """Compile the layers when they first run, which takes from seconds to minutes; on a GPU with CUDA graphs."""

    @property
    def name(self) -> str:
        """In tables."""
        return self.precision + (", compiled" if self.compiled else "")

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network itself, rounded and compiled as asked for."""
        network.to(getattr(torch, self.precision))
        if self.compiled:
            how = GRAPHS if next(network.parameters()).is_cuda else QUICK_TANH
            for layer in network.modules():
                if isinstance(layer, Block):
                    layer.compile(dynamic=True, options=how)  # one graph for all batches: rows come and go
        return network


AS_TRAINED = Execution()
