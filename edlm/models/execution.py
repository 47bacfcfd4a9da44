"""Precision and compilation of a model's networks at inference; their interface stays the same."""

from typing import Literal

import torch
from torch import nn

from edlm.config import config
from edlm.models.transformer import Block

# Options of torch.compile: CUDA graphs are its mode "reduce-overhead"; on a CPU the tanh of a GELU is a large part of a
# layer's time and is faster as a quotient of exponentials.
GRAPHS, QUICK_TANH = {"triton.cudagraphs": True}, {"cpp.use_decompose_tanh": True}
Precision = Literal["float32", "bfloat16"]


@config
class Execution:
    """Precision and compilation; the defaults are exact and start at once.

    `workflows.benchmark sample --execution.…` measures the others.
    """

    precision: Precision = "float32"
    """bfloat16 halves memory and is slower on processors without native support; probabilities and energies are reduced
    in float32 in either case."""
    compiled: bool = False
    """Compile the layers on first use, which takes from seconds to minutes; on a GPU with CUDA graphs."""

    @property
    def name(self) -> str:
        """Label in tables."""
        return self.precision + (", compiled" if self.compiled else "")

    def prepare(self, network: nn.Module) -> nn.Module:
        """Round the network to `precision` in place, compile it if `compiled`, and return it."""
        network.to(getattr(torch, self.precision))
        if self.compiled:
            options = GRAPHS if next(network.parameters()).is_cuda else QUICK_TANH
            for layer in network.modules():
                if isinstance(layer, Block):
                    layer.compile(dynamic=True, options=options)  # one graph for all batch sizes
        return network


AS_TRAINED = Execution()


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for products of bfloat16; others emulate it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_tile"))
