"""Exchange of numbers among workers, for which none waits for its device: they stay where they are."""

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup


class Gathering:
    """Exchange among the workers of a training: between devices by the group of all, between hosts by one of gloo.

    Numbers of a host, such as whether to stop, then need no device: what a step computes there is not waited for.
    """

    def __init__(self, world_size: int, hosts: ProcessGroup | None) -> None:
        """`hosts` is the group of all workers that exchanges tensors on the CPU; None: the default group does."""
        self._world_size, self._hosts = world_size, hosts

    def __call__(self, values: Tensor) -> Tensor:
        """Return the values of every worker, stacked [world_size, ...] in rank order, on the device of `values`."""
        if self._world_size == 1:
            return values[None]
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self._world_size)]
        torch.distributed.all_gather(parts, values, group=self._hosts if values.device.type == "cpu" else None)
        return torch.stack(parts)


def host_group() -> ProcessGroup | None:
    """Return a gloo group of all workers, which all make together; None where the default group is one."""
    if torch.distributed.get_world_size() == 1 or torch.distributed.get_backend() == "gloo":
        return None
    group = torch.distributed.new_group(backend="gloo")
    assert isinstance(group, ProcessGroup)
    return group
