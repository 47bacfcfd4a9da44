"""Seconds of communication: a clock measures the collectives of DeepSpeed, none of which waits for a device.

DeepSpeed's own clock of collectives makes the host wait for the device after each.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edlm.training.step_clock import StepClock

# All that ZeRO calls in a step, of `deepspeed.comm.torch.TorchBackend`.
COLLECTIVES = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter",
    "reduce_scatter_tensor", "all_to_all_single",
)  # fmt: skip


@contextmanager
def timed_collectives(clock: StepClock) -> Iterator[None]:
    """Let the clock measure, within, the collectives of the engine that `deepspeed.initialize` has returned."""
    from deepspeed.comm import comm  # here, because only workers import DeepSpeed

    backend = comm.cdb
    for name in COLLECTIVES:
        setattr(backend, name, _timed(getattr(backend, name), clock))
    try:
        yield
    finally:
        for name in COLLECTIVES:
            delattr(backend, name)  # uncovers the method


@dataclass(frozen=True)
class _Handle:
    """Handle of a collective that goes on meanwhile: of its seconds, those count for which it is waited for."""

    handle: Any
    clock: StepClock

    def wait(self) -> None:
        with self.clock.communication():
            self.handle.wait()


def _timed(collective: Callable[..., Any], clock: StepClock) -> Callable[..., _Handle | None]:
    @functools.wraps(collective)
    def timed(*args: Any, **settings: Any) -> _Handle | None:
        with clock.communication():
            handle = collective(*args, **settings)
        return None if handle is None else _Handle(handle, clock)

    return timed
