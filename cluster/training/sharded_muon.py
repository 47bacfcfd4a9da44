"""Muon under ZeRO: matrices are whole for a moment, while workers hold weights and momentum in flat shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.training.zero_layout import ShardFragment
from edlm.training.optimizers import MOMENTUM, muon


@dataclass(frozen=True)
class MatrixShards:
    """Content of a worker's flat tensor."""

    shapes: Mapping[str, torch.Size]
    """Shapes of the matrices in the tensors of all workers together, by name, in one order on all workers."""
    fragments: Sequence[ShardFragment]
    """What this worker holds of them."""


class ShardedMuon(torch.optim.Optimizer):
    """Muon of `edlm.training.optimizers` for flat shards, which DeepSpeed puts in place of the matrices.

    Averages, weight decay and step are computed by element. In between each matrix is gathered on `device`, and the
    workers that hold elements of it iterate on it. `content` says what is in a flat tensor. All workers step together.
    """

    def __init__(
        self,
        matrices: list[Tensor],
        learning_rate: float,
        weight_decay: float,
        momentum: float,
        *,
        content: Callable[[Tensor], MatrixShards],
        device: torch.device,
    ) -> None:
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})
        self.content, self.device = content, device

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for flat in group["params"]:
                average = self.state[flat].setdefault(MOMENTUM, torch.zeros_like(flat))
                average.lerp_(flat.grad, 1 - group["momentum"])
                ahead = flat.grad.lerp(average, group["momentum"])  # Nesterov
                flat.mul_(1 - group["lr"] * group["weight_decay"])
                self._move(flat, ahead, group["lr"])

    def _move(self, flat: Tensor, ahead: Tensor, learning_rate: float) -> None:
        """Add this worker's elements of every matrix's update along `ahead`, which is as flat as the weights."""
        from deepspeed import comm  # whose collectives are timed; here, because only workers import DeepSpeed

        content = self.content(flat)
        for name, shape in content.shapes.items():
            held = [fragment for fragment in content.fragments if fragment.name == name and fragment.count > 0]
            matrix = torch.zeros(shape, device=self.device)
            for part in held:
                matrix.view(-1)[part.offset : part.offset + part.count] = ahead[part.start : part.start + part.count]
            comm.all_reduce(matrix)  # exact: one worker has the element, others add 0
            if held:
                update = _update(matrix, learning_rate).view(-1).to(flat.device)
                for part in held:
                    flat[part.start : part.start + part.count] += update[part.offset : part.offset + part.count]


def _update(direction: Tensor, learning_rate: float) -> Tensor:
    """Return what a step of Muon along a matrix adds to the weights."""
    update = torch.zeros_like(direction)
    update.grad = direction
    muon([update], learning_rate, weight_decay=0.0, momentum=0.0).step()
    return update
