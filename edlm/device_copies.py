"""Copies between the host and a device, packed: each of them costs the host as much as a kernel, and most make it wait.

What decides the course of a step is computed on the host, in small tensors. On the CPU, host and device are the same,
and nothing is copied.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors on the device, those of the host by one copy, for which the host does not wait."""
    ours = [value for value in values if value.device.type != device.type]
    if not ours:
        return list(values)
    packed = _packed(ours)
    if device.type == "cuda":
        packed = packed.pin_memory()  # a copy of pageable memory would make the host wait, `non_blocking` or not
    there = iter(_unpacked(packed.to(device, non_blocking=True), ours))
    return [value if value.device.type == device.type else next(there) for value in values]


def fetched(values: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors on the host, those of a device by one copy, for which the host waits once."""
    remote = [value for value in values if value.device.type != "cpu"]
    if not remote:
        return list(values)
    on_host = iter(_unpacked(_packed(remote).cpu(), remote))
    return [value if value.device.type == "cpu" else next(on_host) for value in values]


def selected_indices(where: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Return the indices of the true elements, by axis, on the device; of a mask on the host without waiting for it."""
    indices = torch.nonzero(where, as_tuple=True)
    return indices if where.device == device else tuple(sent(indices, device))


def _packed(values: Sequence[Tensor]) -> Tensor:
    """Return the numbers of all tensors as 64-bit words."""
    return torch.cat([_as_integers(value).flatten() for value in values])


def _as_integers(value: Tensor) -> Tensor:
    return value.double().view(torch.int64) if value.is_floating_point() else value.long()


def _unpacked(words: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = words.split([value.numel() for value in like])
    return [_restored(part, value) for part, value in zip(parts, like, strict=True)]


def _restored(words: Tensor, like: Tensor) -> Tensor:
    numbers = words.view(torch.float64) if like.is_floating_point() else words
    return numbers.to(like.dtype).view(like.shape)
