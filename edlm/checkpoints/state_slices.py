"""Slices of a training state: runs of elements of its tensors, which processes save and load each for themselves."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class StateSlice:
    """Elements of the state's tensor `name`, which has `shape`, from `offset` in its flattened form.

    `values` is one-dimensional and shares the memory of whatever owns the elements: it is read to save, filled to load.
    """

    name: str
    shape: torch.Size
    offset: int
    values: Tensor

    @property
    def stop(self) -> int:
        return self.offset + self.values.numel()


def whole(name: str, tensor: Tensor) -> StateSlice:
    """Return the slice that is all of a contiguous tensor."""
    return StateSlice(name, tensor.shape, 0, tensor.detach().view(-1))


def shared_out(slices: Iterable[StateSlice], rank: int, world_size: int) -> list[StateSlice]:
    """Return what one of `world_size` processes saves of slices that all of them have: equal runs of elements."""
    slices = list(slices)
    total = sum(one.values.numel() for one in slices)
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    shares, position = [], 0
    for one in slices:
        count = one.values.numel()
        start, stop = max(0, low - position), min(count, high - position)
        if start < stop:
            shares.append(replace(one, offset=one.offset + start, values=one.values[start:stop]))
        position += count
    return shares


class StateSource(ABC, Mapping[str, Tensor]):
    """A whole training state by name, of which any slices can be read; each access reads its tensor anew."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, torch.Size]:
        """Shapes of all tensors, by name."""

    @property
    @abstractmethod
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Dtypes of all tensors, by name."""

    @abstractmethod
    def fill(self, slices: Iterable[StateSlice]) -> None:
        """Fill the values of the slices. Raise StorageError if they cannot be read as they were saved."""

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class GatheredState(StateSource):
    """A state in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        return {name: tensor.dtype for name, tensor in self._tensors.items()}

    def fill(self, slices: Iterable[StateSlice]) -> None:
        for one in slices:
            one.values.copy_(self._tensors[one.name].flatten()[one.offset : one.stop])

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]


def source_of(state: Mapping[str, Tensor]) -> StateSource:
    """Return a state as one that slices are read from."""
    return state if isinstance(state, StateSource) else GatheredState(state)
