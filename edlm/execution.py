"""Execution: how a model's networks are computed when they only run; what is asked of them stays the same."""

from typing import Literal

import torch
from torch import nn

from edlm.config import config
from edlm.transformer import Layer

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
            on_gpu = next(network.parameters()).is_cuda
            for layer in network.modules():
                if isinstance(layer, Layer):
                    # One graph for all batches: rows come and go with every request.
                    layer.compile(dynamic=True, mode="reduce-overhead" if on_gpu else "default")
        return network


AS_TRAINED = Execution()
