"""Plans against measured runs on this machine: a Markdown table for docs/scaling.md.

python -m workflows.benchmarking.plan_check    # minutes, on otherwise idle cores

Each worker is a process of its own, with one thread. Memory is its peak above what it took once its libraries were
imported, of the worker with the most; seconds are the median step's. The first training says how fast the device is
(peak times MFU, of which a plan needs the product); the seconds of the others are planned from that.
"""

import ctypes
import gc
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed

from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from edlm.data.batches import Rows
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.planning.devices import Device
from edlm.planning.training_memory import Sharding
from edlm.planning.training_plan import Assumptions, TrainingPlan
from edlm.planning.training_work import training_work
from edlm.schedule import LogLinear
from edlm.training.objectives import Denoising
from edlm.training.settings import Training
from workflows.benchmarking.plan import LOOPBACK_BYTES, THIS

CPU = torch.device("cpu")
SIZES = ((256, 4), (384, 6), (512, 8))
VOCABULARY, LENGTH, ROWS, STEPS = 4096, 256, 8, 4
ASSUMED = Assumptions(mfu=1.0, network_efficiency=1.0)
MB = 10**6


@dataclass(frozen=True)
class MeasuredTraining:
    """What one worker measured of itself."""

    memory_bytes: float
    seconds: float
    checkpoint_bytes: int


def measure(size: tuple[int, int], workers: int, stage: int) -> MeasuredTraining:
    """Return what a training takes, each worker in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(workers) as pool:
        store = str(Path(folder, "store"))
        workers_measured = pool.starmap(
            _measured, [(rank, workers, store, size, stage) for rank in range(workers)], chunksize=1
        )
    return MeasuredTraining(
        max(one.memory_bytes for one in workers_measured),
        max(one.seconds for one in workers_measured),
        sum(one.checkpoint_bytes for one in workers_measured),
    )


def planned(size: tuple[int, int], workers: int, stage: int, flops: float) -> TrainingPlan:
    """Return the plan of the same training on devices that compute `flops` FLOP per second."""
    training = _training(workers)
    with torch.device("meta"):
        objective = _objective(size)
    work = training_work(objective, training.batch, LENGTH)
    assert work is not None
    device = Device(THIS, flops, flops, 0.0, LOOPBACK_BYTES, LOOPBACK_BYTES)
    return TrainingPlan(work, training, LENGTH, device, workers, Sharding(stage), ASSUMED)


def _training(workers: int) -> Training:
    return Training(steps=STEPS, batch=ROWS * workers, ema=0.999)


def _objective(size: tuple[int, int]) -> Denoising:
    width, layers = size
    return Denoising(Denoiser(TransformerConfig(width=width, layers=layers), VOCABULARY), LogLinear(), seed=0)


def _measured(rank: int, workers: int, store: str, size: tuple[int, int], stage: int) -> MeasuredTraining:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    training = _training(workers)
    _engine((256, 1), training, stage).backward(_rows(rank, training, 0))  # imports what a training needs
    torch.distributed.barrier()
    before = _memory()
    engine = _engine(size, training, stage)
    seconds = []
    for step in range(STEPS):
        started = time.perf_counter()
        engine.backward(_rows(rank, training, step))
        engine.update(1e-4)
        seconds.append(time.perf_counter() - started)
    memory = _peak_memory() - before
    saved = sum(one.values.nbytes for one in engine.part())
    torch.distributed.destroy_process_group()
    return MeasuredTraining(memory, statistics.median(seconds), saved)


def _engine(size: tuple[int, int], training: Training, stage: int) -> ZeroEngine:
    return ZeroEngine(_objective(size), training, Zero(stage=stage), CPU)  # pyright: ignore[reportArgumentType]


def _rows(rank: int, training: Training, step: int) -> Rows:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (training.batch, LENGTH), generator=generator)
    rows = Rows(tokens, step, torch.arange(training.batch), training.batch)
    return rows.slice(rank * ROWS, (rank + 1) * ROWS)


def _memory() -> int:
    """Return the bytes that this process holds, once freed ones are back at the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # of glibc, as in the workers' Linux
    return psutil.Process().memory_info().rss


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lines() -> Iterator[str]:
    """Yield the lines of the table; the first training is the one that the speed of the device is taken from."""
    yield "| width x layers | workers | ZeRO | memory, MB: planned, measured | checkpoint, MB: planned, measured | seconds per step: planned, measured |"  # noqa: E501
    yield "|---|---|---|---|---|---|"
    flops = None
    for workers in (1, 2):
        for size in SIZES:
            for stage in (0, 2):
                measured = measure(size, workers, stage)
                if flops is None:
                    flops = planned(size, workers, stage, 1.0).step_seconds / measured.seconds
                plan = planned(size, workers, stage, flops)
                pairs = (
                    _pair(plan.memory.total / MB, measured.memory_bytes / MB, ".0f"),
                    _pair(plan.checkpoint_bytes / MB, measured.checkpoint_bytes / MB, ".1f"),
                    _pair(plan.step_seconds, measured.seconds, ".2f"),
                )
                yield f"| {size[0]} x {size[1]} | {workers} | {stage} | {' | '.join(pairs)} |"


def _pair(planned: float, measured: float, form: str) -> str:
    return f"{planned:{form}}, {measured:{form}} ({planned / measured - 1:+.0%})"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
