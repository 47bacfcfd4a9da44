"""Training steps of a benchmark: those of this project race plain ones, at one size and on one device."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cluster.config import Zero
from edlm.baselines.published_training import PlainTrainer
from edlm.config import Positive, config
from edlm.models.execution import COMPILED_VERSIONS, computes_bfloat16
from edlm.sampling.memory_footprint import peak_bytes
from edlm.training.device_usage import DeviceUsage, peak_flop_per_second
from edlm.training.flops import expected_flop
from edlm.training.local_engine import LocalEngine
from edlm.training.settings import Training
from workflows.benchmarking.host_costs import HostCosts, host_costs
from workflows.benchmarking.interleaved_timing import Lap, RacedSampler, Times, race
from workflows.benchmarking.training_objectives import DENOISER, OBJECTIVES, PLAIN, NetworkSizes, RandomRows
from workflows.benchmarking.training_workers import take_steps, worker_group

PRODUCT = "matrix product"
PLAIN_SUFFIX = ", plain"
Precision = Literal["float32", "bfloat16"]


@config
class TrainingSteps(NetworkSizes):
    """Settings of the timing; every combination of the lists is timed."""

    vocabularies: tuple[Positive, ...] = (28, 50_257)
    """Vocabulary sizes |V|."""
    lengths: tuple[Positive, ...] = (256, 1024)
    """Tokens per row, L."""
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Objectives of the steps of one process."""
    steps: Positive = 2
    """Steps of the training loop that are timed together."""
    workers: tuple[Positive, ...] = (1, 2)
    """Numbers of DeepSpeed workers, of one thread each, that train the denoiser; each has `tokens` tokens per step."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage of the workers."""
    rounds: Positive = 5
    """Timings of every step, in turn over the steps."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    """Precisions of the steps of one process; bfloat16 is left out where the processor would emulate it."""
    compiled: bool = False
    """Compile the blocks of all but the plain steps, as the setting of a training does."""
    activation_checkpointing: bool = False
    """Compute the blocks of all but the plain steps again in the backward pass, as the setting of a training does."""
    product_side: Positive = 2048
    """Rows and columns of the matrices whose product gives the device's FLOP per second; more for a GPU."""
    count_operations: bool = True
    """Count operations and waits on the simulated device, which takes the processor a few steps; not of compiled
    blocks, nor of autocast, which that device has not."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.objectives if name not in OBJECTIVES]:
            raise ValueError(f"objectives names {unknown}; there are {', '.join(map(repr, OBJECTIVES))}")

    @property
    def training(self) -> Training:
        """Return the settings of a step: AdamW, clipping and the running average of a pretraining."""
        return Training(
            steps=1, batch=1, decay="constant", ema=0.9999, checkpoint_every=10**9, log_every=10**9,
            compiled=self.compiled, activation_checkpointing=self.activation_checkpointing,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainedSize:
    """One combination of sizes."""

    vocabulary: int
    length: int


@dataclass(frozen=True)
class StepTiming:
    """The measured cost of one training step at one size."""

    size: TrainedSize
    name: str
    rows: int
    times: Times
    """Seconds per step."""
    of_product: float | None
    """Model FLOP per second, of those of a matrix product in the same precision and round; None for workers."""
    mfu: float | None
    """Model FLOP per second, of the peak by the device's data sheet; None for workers, and where it is not known."""
    peak_bytes: int
    costs: HostCosts | None
    """None for workers, and where operations are not counted."""
    plain: str
    """Name of the plain step of the same loss in float32; empty if there is none."""
    precision: Precision
    alone: str
    """Name of the step of one worker, for more of them; empty for other steps."""


@dataclass(frozen=True)
class _Contestant:
    name: str
    rows: int
    run: Callable[[int], None]
    """Takes so many steps."""
    peak: Callable[[], int]
    flop: int | None = None
    costs: Callable[[], HostCosts] | None = None
    plain: str = ""
    precision: Precision = "float32"
    alone: str = ""


def measure_training(settings: TrainingSteps, device: torch.device, say: Callable[[str], None]) -> Iterator[StepTiming]:
    """Measure every step at every size, each size in a race of its own."""
    if settings.compiled:  # all contestants share the code of a block, of which torch compiles eight versions otherwise
        cast("Any", torch._dynamo.config).recompile_limit = COMPILED_VERSIONS
    for vocabulary in settings.vocabularies:
        for length in settings.lengths:
            size = TrainedSize(vocabulary, length)
            say(f"|V| = {vocabulary:,}, L = {length}")
            with contextlib.ExitStack() as stack:
                contestants = [*_single(settings, size, device), *_groups(settings, size, stack)]
                yield from _measured(settings, size, contestants, device, say)


def _measured(
    settings: TrainingSteps, size: TrainedSize, contestants: list[_Contestant], device: torch.device, say
) -> Iterator[StepTiming]:
    products = [
        RacedSampler(_product_name(precision), [Lap(_product(settings.product_side, precision, device))])
        for precision in dict.fromkeys(one.precision for one in contestants)
    ]
    raced = [
        RacedSampler(
            one.name,
            [
                Lap(functools.partial(one.run, 1), 0.0),  # after another contestant's, unlike those of a training
                Lap(functools.partial(one.run, settings.steps), 1 / settings.steps),
            ],
        )
        for one in contestants
    ]
    times = race([*products, *raced], settings.rounds, device, say)
    for one in contestants:
        say(f"memory and operations of {one.name}")
        # FLOP per second of the step over those of the product, in the same round
        share, *_ = times[one.name].times_of(times[_product_name(one.precision)])
        of_product = None if one.flop is None else share * one.flop / (2 * settings.product_side**3)
        usage = DeviceUsage(one.flop, peak_flop_per_second(device, one.precision)).of(times[one.name].median)
        costs = one.costs() if one.costs is not None and settings.count_operations else None
        yield StepTiming(
            size, one.name, one.rows, times[one.name], of_product, usage.get("mfu"), one.peak(), costs, one.plain,
            one.precision, one.alone,
        )  # fmt: skip


def _product_name(precision: str) -> str:
    return f"{PRODUCT}, {precision}"


def _product(side: int, precision: str, device: torch.device) -> Callable[[], None]:
    left, right, out = torch.randn(3, side, side, device=device).to(getattr(torch, precision))

    def run() -> None:
        torch.mm(left, right, out=out)

    return run


def _single(settings: TrainingSteps, size: TrainedSize, device: torch.device) -> Iterator[_Contestant]:
    """Yield the steps of one process: of each objective in this project's loop, and plain."""
    rows = RandomRows(settings, size.vocabulary, size.length)
    training = replace(settings.training, batch=rows.batch)
    precisions = [one for one in settings.precisions if one == "float32" or computes_bfloat16(device)]
    for name in settings.objectives:
        make = OBJECTIVES[name]
        counted = functools.partial(host_costs, name, sizes=settings, vocabulary=size.vocabulary, length=size.length)
        for precision in precisions:
            objective, own = make(settings, size.vocabulary).to(device), replace(training, precision=precision)
            costs = None if settings.compiled else functools.partial(counted, plain=False, training=training)
            yield _ours(name, objective, rows, own, device, costs)
        for precision in precisions if name in PLAIN else []:
            objective, own = make(settings, size.vocabulary).to(device), replace(training, precision=precision)
            costs = functools.partial(counted, plain=True, training=own) if precision == "float32" else None
            yield _plain(name, objective, rows, own, settings.seed, costs)


def _ours(
    name: str, objective: nn.Module, rows: RandomRows, training: Training, device: torch.device,
    costs: Callable[[], HostCosts] | None,
) -> _Contestant:  # fmt: skip
    flop = expected_flop(objective, rows.batch, rows.tokens.shape[1])
    engine = LocalEngine(objective, training)  # pyright: ignore[reportArgumentType] - an objective

    def run(steps: int) -> None:
        take_steps(engine, rows, training, steps)

    peak = functools.partial(peak_bytes, lambda: run(1), device)
    plain, precision = name + PLAIN_SUFFIX if name in PLAIN else "", training.precision
    return _Contestant(in_precision(name, precision), rows.batch, run, peak, flop, costs, plain, precision)


def _plain(
    name: str, objective: Any, rows: RandomRows, training: Training, seed: int, costs: Callable[[], HostCosts] | None
) -> _Contestant:
    flop = expected_flop(objective, rows.batch, rows.tokens.shape[1])
    device = next(objective.parameters()).device
    tokens: Tensor = rows.tokens.to(device)
    loss = PLAIN[name](objective, torch.Generator(device).manual_seed(seed))
    trainer = PlainTrainer(loss, list(objective.trained.parameters()), training)

    def run(steps: int) -> None:
        for _ in range(steps):
            trainer.step(tokens)

    peak = functools.partial(peak_bytes, lambda: run(1), device)
    name = in_precision(name + PLAIN_SUFFIX, training.precision)
    return _Contestant(name, rows.batch, run, peak, flop, costs, precision=training.precision)


def in_precision(name: str, precision: Precision) -> str:
    """Return the name of a step in a precision, given that of the step in float32."""
    return name if precision == "float32" else f"{name}, {precision}"


def _groups(settings: TrainingSteps, size: TrainedSize, stack: contextlib.ExitStack) -> Iterator[_Contestant]:
    """Yield the steps of groups of DeepSpeed workers, which run until the stack ends them."""
    for workers in settings.workers:
        rows = RandomRows(settings, size.vocabulary, size.length, workers)
        make = functools.partial(OBJECTIVES[DENOISER], settings, size.vocabulary)
        training = replace(settings.training, batch=rows.batch)
        group = stack.enter_context(worker_group(workers, Zero(stage=settings.zero_stage), make, rows, training))
        alone = _workers_name(settings, 1) if workers > 1 else ""
        yield _Contestant(
            _workers_name(settings, workers), rows.batch, group.run, functools.partial(group.peak_bytes, 1), alone=alone
        )


def _workers_name(settings: TrainingSteps, workers: int) -> str:
    return f"{DENOISER}, ZeRO-{settings.zero_stage}, {workers} worker{'s' * (workers > 1)}"
