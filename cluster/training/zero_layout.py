"""Layout of DeepSpeed's float32 weights: which elements of which parameters lie where in a worker's flat tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ShardFragment:
    """`count` elements of the parameter `name` from `offset`, stored in the flat tensor `master` from `start`."""

    name: str
    master: int
    start: int
    offset: int
    count: int


def masters_of(optimizer: Any, stage: int, trained: list[nn.Parameter]) -> list[Tensor]:
    """Return this worker's float32 weights, as the optimizer holds them."""
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer: stage 1 in bfloat16
        return list(optimizer.fp32_groups_flat_partition)
    if stage > 0:
        return list(optimizer.single_partition_of_fp32_groups)
    return list(trained)


def parameters_of(optimizer: Any, stage: int, trained: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return for each of the `masters_of` the parameters in it, of which workers hold shards; alike on all workers."""
    if stage == 3:
        return [list(group) for group in optimizer.fp16_groups]
    if stage > 0:
        return [list(group) for group in getattr(optimizer, "bf16_groups", None) or optimizer.bit16_groups]
    return [[parameter] for parameter in trained]


def fragments_of(
    optimizer: Any, stage: int, groups: list[list[Any]], names: Mapping[int, str], rank: int
) -> Iterator[ShardFragment]:
    """Yield this worker's slices of the `parameters_of` its weights; `names` are by the identity of a parameter."""
    for i, group in enumerate(groups):
        for parameter in group:
            name = names[id(parameter)]
            if stage == 3:
                _, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
                count = max(0, min(size, parameter.ds_numel - rank * size))  # the last shard is padded
                yield ShardFragment(name, i, start, rank * size, count)
            elif stage == 0:
                yield ShardFragment(name, i, 0, 0, parameter.numel())
            elif (mapping := parameter._hp_mapping) is not None:
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield ShardFragment(name, i, high.start, low.start, low.numel)


@torch.no_grad()
def load_rounded(optimizer: Any, stage: int) -> None:
    """Copy the float32 weights to the network, in its own precision."""
    if stage == 3:
        optimizer._partition_all_parameters()
        for i in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(i)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif stage > 0:
        optimizer.update_lp_params()
