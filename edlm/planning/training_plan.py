"""Plan of a training: memory, time, communication and checkpoints, from its work and the devices."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from edlm.config import Fraction, PositiveFloat, config
from edlm.planning.devices import GB, Device
from edlm.planning.training_memory import (
    SHARDINGS,
    Sharding,
    TrainingMemory,
    TrainingWork,
    sent_bytes,
    state_bytes,
    training_memory,
)
from edlm.training.settings import Training, share

HOUR = 3600.0
FORWARD = 1 / 3  # of the FLOP of a training step


@config
class Assumptions:
    """What a plan takes for granted of a cluster; measure your own and say so."""

    mfu: Fraction = 0.4
    """Model FLOP per second of the passes, relative to the peak of the device, without communication."""
    network_efficiency: Fraction = 0.7
    """Share of the bandwidth that collectives reach. They are not hidden behind the passes."""
    reserved_gb: float = 4.0
    """Memory of a device that the process, its libraries and fragmentation take, in GB (10^9 bytes)."""
    host_gb_per_second: PositiveFloat = 10.0
    """Speed of a device's copy to host memory, for which a checkpoint stops training."""
    storage_gb_per_second: PositiveFloat = 5.0
    """Speed at which all workers together write a checkpoint, while training goes on."""


@dataclass(frozen=True)
class TrainingPlan:
    """One training on `count` devices."""

    work: TrainingWork
    training: Training
    length: int
    device: Device
    count: int
    sharding: Sharding
    assumptions: Assumptions

    @property
    def rows(self) -> int:
        """Rows per device and micro-step; ConfigurationError if the batch does not divide."""
        return share(self.training, self.count)

    @property
    def memory(self) -> TrainingMemory:
        return training_memory(self.work, self.training, self.rows, self.count, self.sharding, self.device.chunk)

    @property
    def excess_bytes(self) -> float:
        """Bytes per device that are missing; not above 0 if the training fits."""
        return self.memory.total + self.assumptions.reserved_gb * GB - self.device.memory_bytes

    @property
    def sent(self) -> float:
        """Bytes that each device sends per step."""
        return sent_bytes(self.work, self.training, self.count, self.sharding)

    @property
    def compute_seconds(self) -> float:
        """Seconds per step of the passes; with activation checkpointing the forward pass is computed twice."""
        again = FORWARD if self.training.activation_checkpointing else 0.0
        return (
            (1 + again)
            * self.work.flop
            / self.count
            / (self.device.flops(self.training.precision) * self.assumptions.mfu)
        )

    @property
    def communication_seconds(self) -> float:
        """Seconds per step of the collectives."""
        return self.sent / (self.device.bandwidth(self.count) * self.assumptions.network_efficiency)

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.training.batch * self.length / self.step_seconds

    @property
    def tokens(self) -> int:
        """Tokens of all steps together, with repetitions."""
        return self.training.steps * self.training.batch * self.length

    @property
    def mfu(self) -> float:
        """Model FLOP per second relative to the peak, with the collectives."""
        return self.work.flop / self.count / self.step_seconds / self.device.flops(self.training.precision)

    @property
    def checkpoint_bytes(self) -> int:
        return state_bytes(self.work, self.training)

    @property
    def checkpoint_stop_seconds(self) -> float:
        """Seconds for which a checkpoint stops training: each worker copies its part to host memory."""
        return self.checkpoint_bytes / self.count / (self.assumptions.host_gb_per_second * GB)

    @property
    def checkpoint_seconds(self) -> float:
        """Seconds from then to the commit, in which training goes on."""
        return self.checkpoint_bytes / (self.assumptions.storage_gb_per_second * GB)

    @property
    def hours(self) -> float:
        """Hours of all steps, checkpoints and validations."""
        training = self.training
        every = training.validate_every
        validated = 0.0 if every is None else math.ceil(training.steps / every) * training.validation_rows
        seconds = training.steps * self.step_seconds
        seconds += training.steps / training.checkpoint_every * self.checkpoint_stop_seconds
        seconds += FORWARD * self.compute_seconds * validated / training.batch
        return seconds / HOUR


def remedies(plan: TrainingPlan) -> Iterator[str]:
    """Yield what makes a training fit: another sharding or number of devices, less kept; if none alone does, two."""
    shardings = [one for one in SHARDINGS if one.of(plan.training) == one]
    micro_steps, again = list(_with_micro_steps(plan)), replace(plan.training, activation_checkpointing=True)
    alone = [
        (_fitting(replace(plan, sharding=sharding) for sharding in shardings), "{0.sharding.name}"),
        (_fitting([replace(plan, training=again)]), "activation_checkpointing: true"),
        (_fitting(micro_steps), "accumulation: {0.training.accumulation}"),
        (_with_devices(plan), "{0.count} devices"),
    ]
    if not any(fitting for fitting, _ in alone) and micro_steps:
        both = (replace(micro_steps[-1], sharding=sharding) for sharding in shardings)
        alone.append((_fitting(both), "{0.sharding.name} with accumulation: {0.training.accumulation}"))
    for fitting, text in alone:
        if fitting is not None:
            yield text.format(fitting)


def _fitting(plans: Iterable[TrainingPlan]) -> TrainingPlan | None:
    """Return the first plan that fits; None if none does."""
    return next((plan for plan in plans if plan.excess_bytes <= 0), None)


def _with_micro_steps(plan: TrainingPlan) -> Iterator[TrainingPlan]:
    """Yield the plan with more and more micro-steps of fewer rows, down to one row per device."""
    for rows in range(plan.rows - 1, 0, -1):
        if plan.training.batch % (plan.count * rows) == 0:
            steps = plan.training.batch // plan.count // rows
            yield replace(plan, training=replace(plan.training, accumulation=steps))


def _with_devices(plan: TrainingPlan) -> TrainingPlan | None:
    """Return the plan with twice the devices, or twice that, and so on, while each has a row; None if none fits."""
    count = 2 * plan.count
    while plan.training.batch % (count * plan.training.accumulation) == 0:
        more = replace(plan, count=count)
        if more.excess_bytes <= 0:
            return more
        count *= 2
    return None
