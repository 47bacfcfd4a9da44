"""Gathered positions: an energy's head reads only those that a step unmasks, in dense batches."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from edlm.device_copies import sent

SMALLEST = 4  # smallest unit, in positions: with fewer than four rows BLAS takes another path, with other last bits


@dataclass(frozen=True)
class GatheredPositions:
    """n units, each the new positions of one group of one sequence, in reading order, padded to m positions."""

    rows: Int[Tensor, " n"]
    groups: Int[Tensor, " n"]
    positions: Int[Tensor, "n m"]
    valid: Bool[Tensor, "n m"]
    known_indices: tuple[Int[Tensor, " p"], ...] | None = None
    """`indices`, where they are known already."""

    @property
    def indices(self) -> tuple[Int[Tensor, " p"], ...]:
        """Units and columns of the valid positions."""
        return torch.nonzero(self.valid, as_tuple=True) if self.known_indices is None else self.known_indices

    def padded(self, multiple: int) -> "GatheredPositions":
        """Pad to a multiple of units with copies of the first unit in which no position is valid."""
        more = -len(self.rows) % multiple
        rows, groups, positions = (
            torch.cat([values, values[:1].expand(more, *values.shape[1:])])
            for values in (self.rows, self.groups, self.positions)
        )
        return GatheredPositions(rows, groups, positions, F.pad(self.valid, (0, 0, 0, more)), self.known_indices)


def gather_positions(
    new: Bool[Tensor, "b l"], block: int | None, every_size: bool = False, device: torch.device | None = None
) -> Iterator[GatheredPositions]:
    """Gather the groups that have new positions into batches whose sizes m are powers of two or the largest size.

    A unit's size depends only on its own count, so its results do not depend on the other rows of the batch. With
    `every_size`, sizes that no group has are yielded too, as the first group with no valid position: in sharded
    training every worker must make the same calls. Of a mask on the host, everything is computed there and sent to the
    `device` (None: that of the mask) in one copy.
    """
    if device is None or new.device == device:
        yield from _gathered(new, block, every_size)
        return
    on_host = list(_gathered(new, block, every_size))
    parts = [(one.rows, one.groups, one.positions, one.valid, *one.indices) for one in on_host]
    values = iter(sent([value for part in parts for value in part], device))
    for _ in parts:
        rows, groups, positions, valid, unit, column = (next(values) for _ in range(6))
        yield GatheredPositions(rows, groups, positions, valid, (unit, column))


def _gathered(new: Bool[Tensor, "b l"], block: int | None, every_size: bool) -> Iterator[GatheredPositions]:
    length = new.shape[1]
    size = length if block is None else block
    grouped = F.pad(new, (0, -length % size)).unflatten(1, (-1, size))
    counts = grouped.sum(dim=-1)
    start = torch.arange(grouped.shape[1], device=new.device)[:, None] * size
    size = max(size, SMALLEST)
    grouped = F.pad(grouped, (0, size - grouped.shape[-1]))
    order = torch.sort((~grouped).byte(), dim=-1, stable=True).indices
    positions = (order + start).clamp(max=length - 1)
    index, bucket = torch.arange(size, device=new.device), _size_of(size, new.device)[counts]
    for m in unit_sizes(size) if every_size else sorted(set(bucket.flatten().tolist()) - {0}):
        rows, groups = torch.nonzero(bucket == m, as_tuple=True)
        if not len(rows):
            rows = groups = bucket.new_zeros(1)
            yield GatheredPositions(
                rows, groups, positions[rows, groups, :m], torch.zeros(1, m, dtype=torch.bool, device=new.device)
            )
            continue
        yield GatheredPositions(rows, groups, positions[rows, groups, :m], index[:m] < counts[rows, groups][:, None])


def most_positions(length: int, block: int | None) -> tuple[int, int]:
    """Return the positions, with padding, that a row's groups take at most, and those that `every_size` adds to all."""
    size = max(length if block is None else block, SMALLEST)
    return (1 if block is None else math.ceil(length / block)) * size, sum(unit_sizes(size)[:-1])


@functools.cache
def _size_of(largest: int, device: torch.device) -> Int[Tensor, " n"]:
    """Return the size of a unit for each count of new positions; 0 for count 0."""
    sizes = unit_sizes(largest)
    return torch.tensor(
        [0, *(next(size for size in sizes if size >= count) for count in range(1, largest + 1))], device=device
    )


def unit_sizes(largest: int) -> list[int]:
    """Return the sizes m of units: the powers of two from `SMALLEST` up to below `largest`, and `largest` itself."""
    sizes, m = [], SMALLEST
    while m < largest:
        sizes.append(m)
        m *= 2
    return [*sizes, largest]
