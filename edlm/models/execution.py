"""Precision and compilation of a model's networks at inference; their interface stays the same."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from edlm.compilers import require_compiler
from edlm.config import config
from edlm.models.row_buckets import GraphCapture, Recorder, RowBuckets
from edlm.models.transformer import Block

# On a CPU the tanh of a GELU is a large part of a layer's time and is faster as a quotient of exponentials.
QUICK_TANH: dict[str, Any] = {"cpp.use_decompose_tanh": True}
# All blocks of a process share this number of versions of their code: one or two for each size and way to be called.
# Beyond torch's default of 8, which the energies of one model can reach, further ones would not be compiled.
COMPILED_VERSIONS = 64
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
    """Compile the layers on first use, which takes from seconds to minutes; on a GPU with CUDA graphs. On a CPU it
    needs a C++ compiler, on a GPU Triton and a C compiler."""

    @property
    def name(self) -> str:
        """Label in tables."""
        return self.precision + (", compiled" if self.compiled else "")

    def require(self, device: str | torch.device) -> None:
        """Raise ConfigurationError if layers are to be compiled and this machine cannot compile them for `device`."""
        if self.compiled:
            require_compiler(torch.device(device))

    def prepare(self, network: nn.Module) -> nn.Module:
        """Round the network to `precision` in place, compile it if `compiled`, and return it."""
        network.to(getattr(torch, self.precision))
        if self.compiled:
            recorder = Recorder(GraphCapture(), "cuda")
            for layer in network.modules():
                if isinstance(layer, Block):
                    layer.forward = RowBuckets(_compiled(layer.forward), recorder)
        return network


AS_TRAINED = Execution()


def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a block's pass, compiled for any number of rows.

    torch's own CUDA graphs ("triton.cudagraphs") fail where blocks are compiled one by one: the next one finds its
    input overwritten (pytorch/pytorch#152887).
    """
    compiled, settings = torch.compile(forward, dynamic=True, options=QUICK_TANH), cast("Any", torch._dynamo.config)

    def compute(*arguments: Any) -> Tensor:
        if settings.recompile_limit < COMPILED_VERSIONS:  # of the calling thread
            settings.recompile_limit = COMPILED_VERSIONS
        return compiled(*arguments)

    return compute


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for products of bfloat16; others emulate it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_tile", "bf16"))  # bf16: ARM
