"""Row invariance: the last bits of what is computed for a row do not depend on the rows beside it, nor on their number.

A processor's kernels take other paths, with other last bits, for the rows or numbers that are left over at the end of
a matrix, of a vector register or of a thread's share. Padding to whole multiples leaves nothing over, for any number of
threads: MKL shares rows out by fours, and the numbers of a GELU are shared out evenly.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ROWS_MULTIPLE = 8  # rows of a matrix product; BLAS takes another path for fewer than four rows of a thread's share
ALIGNED = 4  # numbers of 16 bytes; where rows begin in between, a row's bits depend on whether its place is odd
LANES = 32  # numbers in the widest vector register: bfloat16 in AVX-512
SHARED_GELU = 2**14  # torch shares a GELU of more numbers than these out among its threads
SHARED = 2**15  # and every other function of single numbers, from so many on


def padded(x: Float[Tensor, "*b n h"], multiple: int) -> Float[Tensor, "*b m h"]:
    """x with rows of zeros below it, up to a multiple of rows."""
    more = -x.shape[-2] % multiple
    # Asked first, so that compiled code does not look at `more`: multiples would get a graph of their own.
    return F.pad(x, (0, 0, 0, more)) if torch.compiler.is_compiling() or more else x


def linear(
    x: Float[Tensor, "*n i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*n o"]:
    """x weight^T + bias, row-invariant."""
    if more := -x.shape[-1] % ALIGNED:
        x, weight = F.pad(x, (0, more)), F.pad(weight, (0, more))
    rows = x.flatten(0, -2)
    return F.linear(padded(rows, ROWS_MULTIPLE), weight, bias)[: len(rows)].unflatten(0, x.shape[:-1])


class RowInvariantLinear(nn.Linear):
    """A linear map of each row, row-invariant."""

    def forward(self, input: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        return linear(input, self.weight, self.bias)


def gelu_multiple(rows: int, width: int) -> int:
    """The multiple of rows at which no thread's share of a GELU [rows width] ends within a vector register.

    `width` must be a multiple of 4. Compiled code shares rows out by itself, and masks what is left over.
    """
    if torch.compiler.is_compiling() or (rows + -rows % ROWS_MULTIPLE) * width <= SHARED_GELU:
        return ROWS_MULTIPLE
    return math.lcm(ROWS_MULTIPLE, torch.get_num_threads() * LANES // math.gcd(LANES, width))
