"""Training loop: an engine owns the weights, a tracker records the metrics, and `fit` takes the steps."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Protocol

import pydantic
import torch
from torch import Tensor, nn

from edlm.config import ConfigurationError, NonNegative, NonNegativeFloat, Positive, PositiveFloat, config
from edlm.data.batches import Rows
from edlm.rng import Purpose, seeds

QUARTERS = 4  # observations are averaged per quarter of t
Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]


@config
class Training:
    """Training settings: AdamW with warm-up, then a constant or cosine learning rate."""

    steps: Positive
    batch: Positive
    """Rows per step, over all workers and micro-steps."""
    accumulation: Positive = 1
    """Micro-steps whose gradients, accumulated in float32, form one step: less memory, and the same step up to rounding
    (and up to dropout, which differs). In bfloat16 each micro-step's gradient is rounded to 8 bits first."""
    learning_rate: PositiveFloat = 3e-4
    warmup_steps: NonNegative = 0
    decay: Literal["constant", "cosine"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    epsilon: PositiveFloat = 1e-8
    clip: PositiveFloat = 1.0
    """Maximum norm of the gradient of all weights."""
    ema: Decay | None = None
    """Decay of the running average of the float32 weights, which is exported; None exports the last weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: Positive = 1000
    log_every: Positive = 50


class Objective(Protocol):
    """Module whose forward returns (loss, observations [b]); its `trained` is optimised, averaged and exported."""

    @property
    def trained(self) -> nn.Module: ...

    def __call__(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]: ...


class Tracker(Protocol):
    """Recorder of training metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """Owner of the weights: one process, or one of many that share them."""

    rank: int
    world: int
    step: int
    """Number of steps taken."""

    def backward(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the observations of these rows; add the gradient to that of the step."""
        ...

    def update(self, learning_rate: float) -> float:
        """Step the optimizer with the clipped gradient, and the average; return the gradient norm before clipping."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Return the corresponding values of every worker, stacked [world, ...] in rank order."""
        ...

    def state(self) -> dict[str, Tensor] | None:
        """Return the unsharded state for a later engine, in float32 on the CPU, on rank 0; None on other ranks.

        All ranks call it.
        """
        ...

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Restore the `state` of an engine after `step` steps."""
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


def learning_rate(training: Training, step: int) -> float:
    """Return the learning rate of step 0, 1, ...: a function of the step alone, so checkpoints need not store it."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.decay == "constant":
        return training.learning_rate
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def share(training: Training, world: int) -> int:
    """Return the rows per worker and micro-step. Raise ConfigurationError if the batch does not divide evenly."""
    parts = world * training.accumulation
    if training.batch % parts:
        raise ConfigurationError(
            f"a batch of {training.batch} rows does not divide into "
            f"{world} workers x {training.accumulation} micro-steps: make batch a multiple of {parts}"
        )
    return training.batch // parts


def fit(
    engine: Engine,
    rows: Callable[[int, int, int], Rows],
    training: Training,
    seed: int,
    log: Callable[[int, Mapping[str, float]], None],
    checkpoint: Callable[[Engine], None],
) -> None:
    """Train until all steps are taken. `rows(step, start, stop)` returns a slice of a step's global batch.

    Every worker calls it. `log` is called on rank 0 after every step, `checkpoint` on all ranks when one is due.
    Raise NonFiniteLoss, on every rank alike, at the first step that is not finite.
    """
    size = share(training, engine.world)
    while engine.step < training.steps:
        step, started = engine.step, time.perf_counter()
        losses, observed = [], []
        for micro in range(training.accumulation):
            start = (micro * engine.world + engine.rank) * size
            torch.manual_seed(int(seeds(seed, step, start, Purpose.DROPOUT)))  # makes dropout resumable
            loss, observations = engine.backward(rows(step, start, start + size))
            losses.append(loss.detach().float())
            observed.append(observations)
        every_loss = engine.gather(torch.stack(losses).mean())
        _require_finite(every_loss, step, "the loss")
        rate = learning_rate(training, step)
        norm = engine.update(rate)
        _require_finite(engine.gather(torch.tensor(norm)), step, "the gradient's norm")
        metrics = {"loss_nats_per_token": every_loss.mean().item(), "learning_rate": rate, "gradient_norm": norm}
        metrics |= _by_quarter(engine, observed)
        seconds = time.perf_counter() - started
        if engine.rank == 0:
            log(step, {**metrics, "seconds_per_step": seconds})
        if engine.step % training.checkpoint_every == 0 and engine.step < training.steps:
            checkpoint(engine)


def _require_finite(by_rank: Tensor, step: int, what: str) -> None:
    failed = torch.nonzero(~by_rank.isfinite())
    if len(failed):
        raise NonFiniteLoss(step, int(failed[0, 0]), what)


def _by_quarter(engine: Engine, observed: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return means of the observations over the global batch, and per quarter of t if the rows have a time."""
    if not observed[0]:
        return {}
    joined = {name: torch.cat([micro[name] for micro in observed]).double() for name in observed[0]}
    t = joined.pop("t", None)
    metrics = {}
    for name, values in joined.items():
        values = engine.gather(values).flatten()
        metrics[name] = values.mean().item()
        if t is None:
            continue
        quarter = (engine.gather(t).flatten() * QUARTERS).long().clamp(max=QUARTERS - 1)
        for i in range(QUARTERS):
            if bool((quarter == i).any()):
                label = f"{name}/t_{i / QUARTERS:.2f}_{(i + 1) / QUARTERS:.2f}"
                metrics[label] = values[quarter == i].mean().item()
    return metrics
