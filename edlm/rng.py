"""Counter-based randomness: every uniform is a function of (seed, step, row, purpose) and its own index.

The functions are stateless. A value does not depend on the requested shape, the device, the other rows of the batch or
the number of workers, which makes training resumable and a served text independent of the other rows of its batch.
"""

import functools
import math
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from edlm.device_copies import sent
from edlm.kernel_choice import rng_kernel_for

# SplitMix64 (Steele, Lea, Flood 2014): increment and the two multipliers of its finaliser.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_BITS = 52  # with 52 bits and the half step of `_unit`, every value is exact in float64 and never 0 or 1
ON_HOST = 2**12  # numbers for a device that the host computes instead: as fast as one kernel
# 64-bit words: int64 tensors on an accelerator, otherwise NumPy's uint64, which is faster in small calls. Both have the
# same operators, which a type checker cannot see.
Words = Any


class Purpose(IntEnum):
    """Purpose of a draw; two purposes never share a stream."""

    TIME = 1  # diffusion times of a training batch or an estimate
    MASK = 2  # which tokens the forward process masks
    GRID = 3  # number of steps, and the step, that a step energy is trained at
    UNMASK = 4  # which masked positions a step unmasks
    CANDIDATE = 5  # tokens of the candidates
    PICK = 6  # which candidate is kept
    NEGATIVE = 7  # noise samples of noise contrastive estimation
    DROPOUT = 8
    ORDER = 9  # order of the rows in an epoch
    ROWS = 10  # which rows an evaluation uses
    REPEAT = 11  # keys of the repeats of an estimate
    PARAMETER = 12  # parameters of a source's distribution
    SEQUENCE = 13  # sequences of a source
    TRUTH = 14  # tokens from the true distribution, on which a learned energy is compared
    CENTRE = 15  # initial cluster centres of a divergence
    RESAMPLE = 16  # which texts a bootstrap resamples
    KEEP = 17  # whether verification keeps a token of the speculative draft
    REDRAW = 18  # replacement of a rejected token
    REMASK = 19  # which unmasked positions a step masks again
    TEXT = 20  # seeds of the texts of one request
    TOKEN_CLASS = 21  # token classes of candidates that satisfy a constraint


def uniforms(
    seed: int | Int64[Tensor, "*b"],
    step: int | Int64[Tensor, "*b"],
    row: int | Int64[Tensor, "*b"],
    purpose: Purpose,
    shape: tuple[int, ...] = (),
    device: torch.device | str | None = None,
) -> Float64[Tensor, "..."]:
    """Return uniforms in the open interval (0, 1), of shape [*b, *shape] where seed, step and row broadcast to [*b].

    The value at an index is the same for every `shape` that contains the index. Tensors on an accelerator decide the
    device; otherwise it is `device`, by default the CPU. For a device, few numbers are computed on the host.
    """
    return _draw((seed, step, row), purpose, shape, device, torch.float64)


def seeds(
    seed: int | Int64[Tensor, "*b"],
    step: int | Int64[Tensor, "*b"],
    row: int | Int64[Tensor, "*b"],
    purpose: Purpose,
    shape: tuple[int, ...] = (),
    device: torch.device | str | None = None,
) -> Int64[Tensor, "..."]:
    """Return non-negative 63-bit integers from the same streams, for use as seeds."""
    return _draw((seed, step, row), purpose, shape, device, torch.int64)


def _draw(parts: tuple, purpose: Purpose, shape: tuple[int, ...], device, dtype: torch.dtype) -> Tensor:
    """Return the numbers of a stream: uniforms as float64, seeds as int64."""
    remote = [part.device for part in parts if isinstance(part, Tensor) and part.device.type != "cpu"]
    if remote:
        key = _spread(_key(parts, purpose, remote[0]), shape[:-1])
        return _draw_on_device(key, shape[-1:], dtype)
    key, target = _key(parts, purpose, torch.device("cpu")), torch.device(device or "cpu")
    if target.type == "cpu":
        return _numbers(_spread(key, shape), dtype)
    # Mixing takes the host some nanoseconds a number, and the device a kernel, or a dozen.
    if not shape or key.size * math.prod(shape) <= ON_HOST:
        return sent([_numbers(_spread(key, shape), dtype)], target)[0]
    return _draw_on_device(sent([_tensor(_spread(key, shape[:-1]))], target)[0], shape[-1:], dtype)


def _draw_on_device(key: Tensor, axis: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the numbers of these keys, [*b, *axis], with at most one axis: by one kernel, if the device has it.

    Elsewhere some twenty of torch's operators draw the same bits.
    """
    kernel = rng_kernel_for(key.device.type) if axis else None
    return _numbers(_spread(key, axis), dtype) if kernel is None else kernel(key, axis[0], dtype)


@np.errstate(over="ignore")  # scalars, unlike arrays, warn when they wrap around
def _key(parts: tuple, purpose: Purpose, device: torch.device) -> Words:
    key: Words = _of_purpose(purpose)
    if device.type != "cpu":
        key = torch.full((), int(key.view(np.int64)), device=device)  # filled there: nothing is copied
    for part in parts:
        key = _mix((key ^ _words(part, device)) + _like(_GOLDEN, key))
    return key


@functools.cache
def _of_purpose(purpose: Purpose) -> np.uint64:
    # Mix the purpose before combining it with the seed: of plain small integers, 3 ^ 0 and 2 ^ 1 would be one stream.
    return _mix(np.array([int(purpose)], dtype=np.uint64) * np.uint64(_GOLDEN))[0]


def _words(part: int | Tensor, device: torch.device) -> Words:
    if device.type != "cpu":
        return part.to(device, torch.int64) if isinstance(part, Tensor) else torch.full((), part, device=device)
    return part.long().numpy().view(np.uint64) if isinstance(part, Tensor) else np.uint64(part % 2**64)


@np.errstate(over="ignore")
def _spread(key: Words, shape: tuple[int, ...]) -> Words:
    for size in shape:
        if isinstance(key, Tensor):
            index = torch.arange(1, size + 1, dtype=torch.int64, device=key.device)
        else:
            index = np.arange(1, size + 1, dtype=np.uint64)
        key = _mix(key[..., None] + index * _like(_GOLDEN, key))
    return key


def _mix(z: Words) -> Words:
    z = (z ^ _shift_right(z, 30)) * _like(_FIRST, z)
    z = (z ^ _shift_right(z, 27)) * _like(_SECOND, z)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Words, bits: int) -> Words:
    """Shift right logically; torch's >> on signed integers copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1) if isinstance(z, Tensor) else z >> np.uint64(bits)


def _like(constant: int, z: Words) -> Words:
    """Return the 64-bit `constant` in a type that can be added to z and multiplied with it."""
    return _signed(constant) if isinstance(z, Tensor) else np.uint64(constant)


def _signed(bits: int) -> int:
    """Return the integer that these 64 bits represent in two's complement."""
    return (bits + 2**63) % 2**64 - 2**63


def _numbers(z: Words, dtype: torch.dtype) -> Tensor:
    return _unit(z) if dtype == torch.float64 else _tensor(_shift_right(z, 1))


def _unit(z: Words) -> Tensor:
    high = _shift_right(z, 64 - _BITS)
    if isinstance(high, Tensor):
        return (high.double() + 0.5) * 2.0**-_BITS
    return _tensor((high.astype(np.float64) + 0.5) * 2.0**-_BITS)


def _tensor(values: Words) -> Tensor:
    """Return NumPy values as a tensor; NumPy scalars become 0-dimensional tensors."""
    if isinstance(values, Tensor):
        return values
    values = np.asarray(values)
    return torch.from_numpy(values.view(np.int64) if values.dtype == np.uint64 else values)
