"""Interfaces of training: the objective, the engine that owns its weights, and the tracker of its metrics."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from edlm.checkpoints.state_slices import StateSlice
from edlm.data.batches import Rows


class Objective(Protocol):
    """Module whose forward returns (loss, observations [b]); its `trained` is optimised, averaged and exported."""

    @property
    def trained(self) -> nn.Module: ...

    def __call__(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]: ...


class Tracker(Protocol):
    """Recorder of training metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def secure(self) -> None:
        """Make what was logged as durable as a checkpoint, which is committed after it; from any thread."""
        ...

    def text(self, name: str, content: str) -> None: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """Owner of the weights: one process, or one of many that share them."""

    rank: int
    world_size: int
    step: int
    """Number of steps taken."""
    validation: Tensor
    """Lowest validation loss so far and the number of validations since, float64 [2]; part of the state."""

    def backward(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the observations of these rows; add the gradient to that of the step."""
        ...

    def update(self, learning_rate: float) -> Tensor:
        """Step the optimizer with the clipped gradient, and the average.

        Return the gradient norm before clipping; NaN, or infinite, if the step must not count. It may be on the device.
        """
        ...

    def evaluating(self) -> AbstractContextManager[Callable[[Rows], Tensor]]:
        """Return a context whose value computes the loss of rows with the averaged weights, if any, without dropout.

        All ranks enter it, and call its value equally often. Training goes on after it as if nothing had happened.
        """
        ...

    def remember_best(self) -> None:
        """Keep a copy of the weights that `evaluating` shows: with `keep_best`, `export` returns it."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Return the corresponding values of every worker, stacked [world_size, ...] in rank order, where they are.

        Values on the CPU are exchanged without waiting for a device, and those of a device stay there.
        """
        ...

    def part(self) -> list[StateSlice]:
        """Return the slices of the state that this rank saves, in its own memory: those of all ranks are all of it."""
        ...

    def state(self) -> dict[str, Tensor] | None:
        """Return the unsharded state for a later engine, in float32 on the CPU, on rank 0; None on other ranks.

        All ranks call it.
        """
        ...

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Restore the `state` of an engine after `step` steps; of a `StateSource` only what this rank needs is read.

        All ranks call it. Raise ValueError, on all ranks alike, for the state of another network or training, and for
        one that cannot be read as it was saved; then the engine is of no use until another is loaded.
        """
        ...

    def exported_part(self) -> list[StateSlice]:
        """Return the slices of the weights to keep that this rank saves; those of all ranks are all of them."""
        ...

    def export(self) -> dict[str, Tensor] | None:
        """Return the unsharded weights to keep, in float32 on the CPU, on rank 0; None on other ranks.

        All ranks call it.
        """
        ...


class NonFiniteLoss(FloatingPointError):
    """Error for a loss or gradient that is not finite; further steps would only spread it."""

    def __init__(self, step: int, rank: int, what: str) -> None:
        super().__init__(
            f"{what} at step {step} on rank {rank} is not finite; lower the learning rate or look at the data"
        )
        self.step, self.rank, self.what = step, rank, what

    def __reduce__(self):
        return type(self), (self.step, self.rank, self.what)
