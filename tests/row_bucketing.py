"""Networks whose blocks compute in row buckets on the CPU, where a recording is the run itself."""

from collections.abc import Iterable

import torch
from torch import nn

from edlm.models.row_buckets import Recorder, RowBuckets
from edlm.models.transformer import Block


def bucket(network: nn.Module, shapes: list[torch.Size] | None = None) -> None:
    """Let a network do, in place, all that it does on a GPU but the graphs, and note the shapes that blocks compute."""
    recorder = Recorder(lambda run: run, "cpu")
    for block in blocks_of([network]):
        block.forward = RowBuckets(_noting(block.forward, shapes), recorder)


def blocks_of(networks: Iterable[nn.Module]) -> list[Block]:
    return [module for network in networks for module in network.modules() if isinstance(module, Block)]


def _noting(forward, shapes):
    def compute(x, *others):
        if shapes is not None:
            shapes.append(x.shape)
        return forward(x, *others)

    return compute
