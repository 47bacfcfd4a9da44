"""Counter-based randomness: every uniform is a function of (seed, step, row, purpose) and its own index.

Nothing here has a state. A number's value does not depend on the shape that was asked for, on the device, on the rows
that are computed beside it, or on how many workers there are: that is what makes training resumable and a served text
independent of its batch mates.
"""

from enum import IntEnum

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014): increment and the two multipliers of its finaliser, as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_BITS = 52  # with 52 bits and the half-step below, every value is exact in float64 and never 0 or 1


class Purpose(IntEnum):
    """What a number is drawn for: two purposes never share a stream."""

    TIME = 1  # diffusion times of a training batch or an estimate
    MASK = 2  # which tokens the forward process masks
    GRID = 3  # the number of steps, and the step, that a step energy is trained at
    REVEAL = 4  # which masked positions a step reveals
    CANDIDATE = 5  # the candidates' tokens
    PICK = 6  # which candidate is kept
    NEGATIVE = 7  # noise samples of noise contrastive estimation
    DROPOUT = 8
    ORDER = 9  # the order of the rows in an epoch
    ROWS = 10  # which rows an evaluation looks at
    REPEAT = 11  # keys of the repeats of an estimate
    PARAMETER = 12  # the parameters of a source's law
    SEQUENCE = 13  # the sequences of a source
    TRUTH = 14  # what a learned energy is compared on: tokens from the law itself
    CENTRE = 15  # where the clusters of a divergence start
    RESAMPLE = 16  # which texts a bootstrap takes
    KEEP = 17  # whether a verified draft keeps its token
    AGAIN = 18  # the token that takes its place


def uniforms(
    seed: int | Int64[Tensor, "*b"],
    step: int | Int64[Tensor, "*b"],
    row: int | Int64[Tensor, "*b"],
    purpose: Purpose,
    shape: tuple[int, ...] = (),
    device: torch.device | str | None = None,
) -> Float64[Tensor, "..."]:
    """Uniforms in the open interval (0, 1), of shape [*b, *shape] where seed, step and row broadcast to [*b].

    The value at an index is the same for every `shape` that contains the index. Tensors decide the device; with
    integers alone it is `device`.
    """
    return _to_unit(_spread(_key(seed, step, row, purpose, device), shape))


def seeds(
    seed: int | Int64[Tensor, "*b"],
    step: int | Int64[Tensor, "*b"],
    row: int | Int64[Tensor, "*b"],
    purpose: Purpose,
    shape: tuple[int, ...] = (),
    device: torch.device | str | None = None,
) -> Int64[Tensor, "..."]:
    """Non-negative 63-bit integers of the same streams, to be used as seeds of something else."""
    return _shift_right(_spread(_key(seed, step, row, purpose, device), shape), 1)


def _key(seed, step, row, purpose: Purpose, device) -> Tensor:
    words = [torch.as_tensor(word, dtype=torch.int64) for word in (seed, step, row)]
    device = next((word.device for word in words if word.device.type != "cpu"), device)
    # The purpose is mixed before the seed comes in: of two small integers, 3 ^ 0 and 2 ^ 1 would be one stream.
    key = _mix(torch.full((), int(purpose), dtype=torch.int64, device=device) * _GOLDEN)
    for word in words:
        key = _mix((key ^ word.to(key.device)) + _GOLDEN)
    return key


def _spread(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    for size in shape:
        index = torch.arange(1, size + 1, dtype=torch.int64, device=key.device)
        key = _mix(key.unsqueeze(-1) + index * _GOLDEN)
    return key


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on signed integers copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _to_unit(z: Tensor) -> Tensor:
    return (_shift_right(z, 64 - _BITS).double() + 0.5) * 2.0**-_BITS
