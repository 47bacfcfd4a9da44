"""The numbers of `edlm.rng` along their last axis by one kernel of a GPU, bit by bit those of the CPU.

SplitMix64 (Steele, Lea, Flood 2014), as it is in `edlm.rng`, where torch's operators need some twenty kernels.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Int64
from torch import Tensor

BLOCK = 256  # numbers of one program
# As in `edlm.rng`, which no kernel can import.
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND = tl.constexpr(0x94D049BB133111EB)
BITS = tl.constexpr(52)


def drawn(key: Int64[Tensor, "*b"], size: int, dtype: torch.dtype) -> Tensor:
    """Return the numbers of each stream, [*b, size]: float64 in (0, 1), or non-negative integers as int64."""
    key = key.contiguous()
    numbers = torch.empty((*key.shape, size), dtype=dtype, device=key.device)
    blocks = triton.cdiv(size, BLOCK)
    with torch.cuda.device_of(key):
        _draw[(key.numel() * blocks,)](key, numbers, size, blocks, BLOCK)  # pyright: ignore
    return numbers


@triton.jit(do_not_specialize=["size", "blocks"])
def _draw(keys, numbers, size, blocks, block_size: tl.constexpr):
    row, block = tl.program_id(0) // blocks, (tl.program_id(0) % blocks).to(tl.int64)
    index = block * block_size + tl.arange(0, block_size)
    key = tl.load(keys + row).to(tl.uint64, bitcast=True)
    z = _mix(key + (index + 1).to(tl.uint64) * GOLDEN)
    if numbers.dtype.element_ty == tl.float64:
        values = ((z >> (64 - BITS)).to(tl.float64) + 0.5) * 2.0**-BITS
    else:
        values = (z >> 1).to(tl.int64)
    tl.store(numbers + row.to(tl.int64) * size + index, values, mask=index < size)


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * FIRST
    z = (z ^ (z >> 27)) * SECOND
    return z ^ (z >> 31)
