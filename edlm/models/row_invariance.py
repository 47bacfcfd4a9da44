"""Row invariance: the last bits of a row's result depend neither on the other rows nor on their number.

CPU kernels take other paths, with other last bits, for the remaining rows or numbers at the end of a matrix, a vector
register or a thread's share. Padding to whole multiples leaves no remainder, for any number of threads: MKL splits rows
among threads by fours, and the numbers of a GELU are split evenly.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ROWS_MULTIPLE = 8  # rows of a matrix product; BLAS takes another path for fewer than four rows of a thread's share
ALIGNED = 4  # numbers in 16 bytes; if rows start in between, a row's bits depend on whether its index is odd
LANES = 32  # numbers in the widest vector register: bfloat16 in AVX-512
SHARED_GELU = 2**14  # torch splits a GELU of more numbers than this among its threads
SHARED = 2**15  # and every other elementwise function, from this many numbers on


def padded(x: Float[Tensor, "*b n h"], multiple: int) -> Float[Tensor, "*b m h"]:
    """Pad x with rows of zeros to a multiple of rows."""
    more = -x.shape[-2] % multiple
    # Compilation is tested first, so that compiled code does not test `more`: multiples would get their own graph.
    return F.pad(x, (0, 0, 0, more)) if torch.compiler.is_compiling() or more else x


def unpadded(x: Float[Tensor, "*b m h"], rows: int) -> Float[Tensor, "*b n h"]:
    """Remove the rows that `padded` has added.

    Without any, x is returned, and no slice of it, whose backward pass would fill a tensor with zeros first.
    """
    return x[..., :rows, :] if torch.compiler.is_compiling() or x.shape[-2] != rows else x


def linear(
    x: Float[Tensor, "*n i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*n o"]:
    """Compute x weight^T + bias, row-invariant."""
    if more := -x.shape[-1] % ALIGNED:
        x, weight = F.pad(x, (0, more)), F.pad(weight, (0, more))
    rows = x.flatten(0, -2)
    return unpadded(F.linear(padded(rows, ROWS_MULTIPLE), weight, bias), len(rows)).unflatten(0, x.shape[:-1])


class RowInvariantLinear(nn.Linear):
    """Row-invariant linear layer."""

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return linear(input, self.weight, self.bias)


def gelu_multiple(rows: int, width: int) -> int:
    """Return the multiple of rows at which no thread's share of a GELU [rows width] ends within a vector register.

    `width` must be a multiple of 4. Compiled code splits rows itself and masks the remainder.
    """
    if torch.compiler.is_compiling() or (rows + -rows % ROWS_MULTIPLE) * width <= SHARED_GELU:
        return ROWS_MULTIPLE
    return math.lcm(ROWS_MULTIPLE, torch.get_num_threads() * LANES // math.gcd(LANES, width))
