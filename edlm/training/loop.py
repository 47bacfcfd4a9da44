"""Training: an engine owns the weights, a tracker owns the numbers, and `fit` owns the steps."""

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

QUARTERS = 4  # observations are averaged by quarter of t
Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]


@config
class Training:
    """How a network is trained: AdamW, warm-up, then a constant or a cosine."""

    steps: Positive
    batch: Positive
    """Rows in a step, over all workers and micro-steps."""
    accumulation: Positive = 1
    """Micro-steps whose gradients, added up in float32, make one step: less memory, and the same step but for rounding
    (and for dropout, which differs). In bfloat16 each micro-step's gradient is rounded to 8 bits first."""
    learning_rate: PositiveFloat = 3e-4
    warmup_steps: NonNegative = 0
    decay: Literal["constant", "cosine"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    epsilon: PositiveFloat = 1e-8
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient of all weights."""
    ema: Decay | None = None
    """Decay of the running average of the float32 weights, which is then what is kept; None keeps the last weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: Positive = 1000
    log_every: Positive = 50


class Objective(Protocol):
    """A module whose forward returns (loss, observations [b]); `trained` is what is optimised, averaged and kept."""

    @property
    def trained(self) -> nn.Module: ...

    def __call__(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]: ...


class Tracker(Protocol):
    """Whoever wants to know the numbers."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """Whoever owns the weights: one process, or one of many that share them."""

    rank: int
    world: int
    step: int
    """How many steps the weights have behind them."""

    def backward(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of these rows, and their observations; its gradient is added to the step's."""
        ...

    def update(self, learning_rate: float) -> float:
        """One step of the optimizer with the clipped gradient, and of the average; the norm before clipping."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """The same values of every worker, stacked [world, ...] in the order of their ranks."""
        ...

    def state(self) -> dict[str, Tensor] | None:
        """Everything a later engine needs, whole, in float32 and on the CPU, on rank 0; None elsewhere. All ranks call
        it."""
        ...

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Afterwards the engine goes on after `step` steps as the one whose `state` it is."""
        ...

    def export(self) -> dict[str, Tensor] | None:
        """The weights to keep, whole, in float32 and on the CPU, on rank 0; None elsewhere. All ranks call it."""
        ...


class NonFiniteLoss(FloatingPointError):
    """Training met a loss or a gradient that is not a number; more steps would only spread it."""

    def __init__(self, step: int, rank: int, what: str) -> None:
        super().__init__(
            f"{what} at step {step} on rank {rank} is not finite; lower the learning rate or look at the data"
        )
        self.step, self.rank, self.what = step, rank, what

    def __reduce__(self):
        return type(self), (self.step, self.rank, self.what)


def learning_rate(training: Training, step: int) -> float:
    """The learning rate of step 0, 1, ...: a function of the step alone, so that nothing about it need be saved."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.decay == "constant":
        return training.learning_rate
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def share(training: Training, world: int) -> int:
    """Rows of one worker in one micro-step; ConfigurationError where the batch cannot be cut evenly."""
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
    """Afterwards the engine has taken all steps. `rows(step, start, stop)` gives places of a step's global batch.

    Every worker calls it. `log` is called on rank 0 after every step, `checkpoint` on all ranks when one is due.
    Raises NonFiniteLoss, on every rank alike, at the first step that is not finite.
    """
    size = share(training, engine.world)
    while engine.step < training.steps:
        step, started = engine.step, time.perf_counter()
        losses, observed = [], []
        for micro in range(training.accumulation):
            place = (micro * engine.world + engine.rank) * size
            torch.manual_seed(int(seeds(seed, step, place, Purpose.DROPOUT)))  # dropout, too, can be resumed
            loss, observations = engine.backward(rows(step, place, place + size))
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
    wrong = torch.nonzero(~by_rank.isfinite())
    if len(wrong):
        raise NonFiniteLoss(step, int(wrong[0, 0]), what)


def _by_quarter(engine: Engine, observed: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means of the observations over the global batch, and by quarter of t where the rows have a time."""
    if not observed[0]:
        return {}
    joined = {name: torch.cat([one[name] for one in observed]).double() for name in observed[0]}
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
