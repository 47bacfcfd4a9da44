"""Packing: only the positions that a step reveals enter an energy's head, gathered into dense rows."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

SMALLEST = 4  # places of the smallest size: with fewer rows than four BLAS takes another path, with other last bits


@dataclass(frozen=True)
class Packed:
    """n units, each the new positions of one group of one sequence, in reading order, padded to m places."""

    rows: Int[Tensor, " n"]
    groups: Int[Tensor, " n"]
    positions: Int[Tensor, "n m"]
    valid: Bool[Tensor, "n m"]

    def padded(self, multiple: int) -> "Packed":
        """The same units and, up to a multiple of them, copies of the first in which no place is valid."""
        more = -len(self.rows) % multiple
        rows, groups, positions = (
            torch.cat([one, one[:1].expand(more, *one.shape[1:])]) for one in (self.rows, self.groups, self.positions)
        )
        return Packed(rows, groups, positions, F.pad(self.valid, (0, 0, 0, more)))


def pack(new: Bool[Tensor, "b l"], block: int | None, every_size: bool = False) -> Iterator[Packed]:
    """The groups that have new positions, packed in batches whose sizes m are powers of two.

    A unit's size depends on its own count alone, so what is computed from it does not depend on its batch mates.
    With `every_size` no size is left out: one that no group has comes with the first group, no place of it valid. In
    sharded training every worker must make the same calls.
    """
    length = new.shape[1]
    size = length if block is None else block
    grouped = F.pad(new, (0, -length % size)).unflatten(1, (-1, size))
    counts = grouped.sum(dim=-1)
    start = torch.arange(grouped.shape[1], device=new.device)[:, None] * size
    size = max(size, SMALLEST)
    grouped = F.pad(grouped, (0, size - grouped.shape[-1]))
    order = torch.sort((~grouped).byte(), dim=-1, stable=True).indices
    positions = (order + start).clamp(max=length - 1)
    places, bucket = torch.arange(size, device=new.device), _size_of(size, new.device)[counts]
    for m in _sizes(size) if every_size else sorted(set(bucket.flatten().tolist()) - {0}):
        rows, groups = torch.nonzero(bucket == m, as_tuple=True)
        if not len(rows):
            rows = groups = bucket.new_zeros(1)
            yield Packed(
                rows, groups, positions[rows, groups, :m], torch.zeros(1, m, dtype=torch.bool, device=new.device)
            )
            continue
        yield Packed(rows, groups, positions[rows, groups, :m], places[:m] < counts[rows, groups][:, None])


@functools.cache
def _size_of(largest: int, device: torch.device) -> Int[Tensor, " n"]:
    """The size of a unit by its count; 0 of nothing."""
    sizes = _sizes(largest)
    return torch.tensor(
        [0, *(next(size for size in sizes if size >= count) for count in range(1, largest + 1))], device=device
    )


def _sizes(largest: int) -> list[int]:
    """The powers of two from the smallest size, and `largest` itself."""
    sizes, m = [], SMALLEST
    while m < largest:
        sizes.append(m)
        m *= 2
    return [*sizes, largest]
