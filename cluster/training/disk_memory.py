"""Tensors in files of a local disk, mapped into memory: the kernel keeps there what fits, and moves the rest.

The files have no names. So their space is free again when the tensors are gone, however their process ends.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edlm.config import ConfigurationError

ALIGNMENT = 64  # bytes, that of torch's own memory


class DiskMemory:
    """Memory in a folder; raise ConfigurationError unless it is one that can be written to."""

    def __init__(self, folder: str) -> None:
        if not os.access(folder, os.W_OK | os.X_OK) or not Path(folder).is_dir():
            raise ConfigurationError(
                f"cluster.zero.offload_folder: {folder} is no folder on {os.uname().nodename} that can be written to; "
                "make it on every machine of the cluster, on a local disk"
            )
        self._folder = folder
        self._files: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()

    def zeros_like(self, tensor: Tensor) -> Tensor:
        return self.room([tensor])[0]

    def room(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return zeros with the shapes and dtypes of the tensors, in one file.

        Raise ConfigurationError if the disk has no room: later, a full disk would end the process with SIGBUS.
        """
        starts, size = [], 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        with tempfile.TemporaryFile(dir=self._folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, size))
            except OSError as error:
                raise ConfigurationError(
                    f"cluster.zero.offload_folder: {self._folder} on {os.uname().nodename} has no room for "
                    f"{size:,} bytes more ({error.strerror})"
                ) from error
            memory, kept = mmap.mmap(file.fileno(), max(1, size)), os.dup(file.fileno())
        self._files[memory] = kept
        weakref.finalize(memory, os.close, kept)
        return [_view(memory, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]

    def take_over(self, tensors: Iterable[Tensor]) -> None:
        """Move tensors and their gradients here, one after the other."""
        for tensor in tensors:
            for one in (tensor, tensor.grad):
                if one is not None:
                    one.data = self.zeros_like(one).copy_(one.detach())

    def flush(self) -> None:
        """Write what is in memory only. Raise OSError if the disk has lost something since the last time."""
        for _, file in list(self._files.items()):  # with the memory, so that none is closed meanwhile
            try:
                os.fdatasync(file)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self._folder) from error


def _view(memory: mmap.mmap, start: int, like: Tensor) -> Tensor:
    if not like.numel():
        return torch.empty_like(like, device="cpu")
    return torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=start).view(like.shape)
