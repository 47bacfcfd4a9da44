"""Plans against measured runs on this machine: a Markdown table for docs/scaling.md.

python -m workflows.benchmarking.plan_check    # 20 minutes, on otherwise idle cores

Each worker is a process of its own, with one thread. Memory is its peak above what it took once its libraries were
imported, of the worker with the most; freed tensors go back to the system at once (`MMAP_BYTES`), so that the heap's
fragments do not count. Energies are measured in steps that unmask every position, the largest that a run meets.
Seconds are the median step's. One training, of the size in the middle, says how fast the device is (peak times MFU, of
which a plan needs the product); the seconds of the other denoisers are planned from that, those of energies' largest
steps are not.
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
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
import torch.distributed

from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import Model
from edlm.models.denoiser import Denoiser
from edlm.models.readout import CPU_CHUNK
from edlm.models.transformer import TransformerConfig
from edlm.planning.devices import Device
from edlm.planning.training_memory import Sharding
from edlm.planning.training_plan import Assumptions, TrainingPlan
from edlm.planning.training_work import training_work
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import LARGEST_GRID, energy_objective
from edlm.training.interfaces import Objective
from edlm.training.objectives import Denoising
from edlm.training.settings import Training
from workflows.benchmarking.plan import LOOPBACK_BYTES, THIS

CPU = torch.device("cpu")
SIZES = ((256, 4), (384, 6), (512, 8))
SMALLEST, CHARACTERS, BPE, GPT2 = SIZES[0], 28, 4096, 50_257
LENGTH, ROWS, STEPS = 256, 8, 4
ASSUMED = Assumptions(mfu=1.0, network_efficiency=1.0)
MB = 10**6
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 10**6  # of glibc's `mallopt`: what is larger is mapped, and unmapped when freed
ENERGIES = {
    "nce": (BidirectionalEnergyConfig(), 1),
    "step": (StepEnergyConfig(), 7),
    "conditional": (ConditionalEnergyConfig(), 1),
}
"""Energies of the checks, with their negatives."""


@dataclass(frozen=True)
class Check:
    """Training that is measured."""

    size: tuple[int, int]
    """Width and layers of the denoiser."""
    workers: int = 1
    stage: int = 0
    vocabulary: int = BPE
    energy: str | None = None
    """Of `ENERGIES`, trained on the denoiser; None: the denoiser is trained."""

    @property
    def training(self) -> Training:
        return Training(steps=STEPS, batch=ROWS * self.workers, ema=0.999)

    def objective(self, largest_grid: int) -> Objective:
        width, layers = self.size
        denoiser = Denoiser(TransformerConfig(width=width, layers=layers), self.vocabulary)
        if self.energy is None:
            return Denoising(denoiser, LogLinear(), seed=0)
        kind, negatives = ENERGIES[self.energy]
        model = Model(denoiser, kind.build(denoiser), LogLinear())
        return energy_objective(model, negatives, "ranking", 0, largest_grid)


MIDDLE = Check(SIZES[1])  # says how fast the device is
CHECKS = (
    *(Check(size, workers, stage) for workers in (1, 2) for size in SIZES for stage in (0, 2)),
    *(Check(SMALLEST, 1, stage, GPT2) for stage in (0, 2)),
    *(
        Check(SMALLEST, 1, stage, vocabulary, energy)
        for energy in ENERGIES
        for vocabulary in (CHARACTERS, GPT2)
        for stage in (0, 2)
    ),
    *(Check(SMALLEST, 2, 2, CHARACTERS, energy) for energy in ENERGIES),
)


@dataclass(frozen=True)
class MeasuredTraining:
    """What one worker measured of itself."""

    memory_bytes: float
    seconds: float
    checkpoint_bytes: int


def measure(check: Check) -> MeasuredTraining:
    """Return what a training takes, each worker in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(check.workers) as pool,
    ):
        store = str(Path(folder, "store"))
        workers = pool.starmap(_measured, [(rank, store, check) for rank in range(check.workers)], chunksize=1)
    return MeasuredTraining(
        max(one.memory_bytes for one in workers),
        max(one.seconds for one in workers),
        sum(one.checkpoint_bytes for one in workers),
    )


def planned(check: Check, flops: float) -> TrainingPlan:
    """Return the plan of the same training on devices that compute `flops` FLOP per second."""
    with torch.device("meta"):
        objective = check.objective(LARGEST_GRID)
    work = training_work(objective, check.training.batch, LENGTH)
    assert work is not None
    device = Device(THIS, flops, flops, 0.0, LOOPBACK_BYTES, LOOPBACK_BYTES, chunk=CPU_CHUNK)
    return TrainingPlan(work, check.training, LENGTH, device, check.workers, Sharding(check.stage), ASSUMED)


def _measured(rank: int, store: str, check: Check) -> MeasuredTraining:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(check.workers)}
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=check.workers)
    _engine(replace(check, size=(64, 1))).backward(_rows(rank, check, 0))  # imports what a training needs
    torch.distributed.barrier()
    before = _memory()
    engine = _engine(check)
    seconds = []
    for step in range(STEPS):
        started = time.perf_counter()
        engine.backward(_rows(rank, check, step))
        engine.update(1e-4)
        seconds.append(time.perf_counter() - started)
    memory = _peak_memory() - before
    saved = sum(one.values.nbytes for one in engine.part())
    torch.distributed.destroy_process_group()
    return MeasuredTraining(memory, statistics.median(seconds), saved)


def _engine(check: Check) -> ZeroEngine:
    objective = check.objective(largest_grid=1)
    return ZeroEngine(objective, check.training, Zero(stage=check.stage), CPU)  # pyright: ignore[reportArgumentType]


def _rows(rank: int, check: Check, step: int) -> Rows:
    generator = torch.Generator().manual_seed(step)
    batch = check.training.batch
    tokens = torch.randint(check.vocabulary, (batch, LENGTH), generator=generator)
    return Rows(tokens, step, torch.arange(batch), batch).slice(rank * ROWS, (rank + 1) * ROWS)


def _memory() -> int:
    """Return the bytes that this process holds, once freed ones are back at the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # of glibc, as in the workers' Linux
    return psutil.Process().memory_info().rss


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lines() -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| trained | width x layers | V | workers | ZeRO | memory, MB: planned, measured | checkpoint, MB: planned, measured | seconds per step: planned, measured |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|"
    middle = measure(MIDDLE)
    flops = planned(MIDDLE, 1.0).step_seconds / middle.seconds
    for check in CHECKS:
        measured = middle if check == MIDDLE else measure(check)
        plan = planned(check, flops)
        largest = f"{measured.seconds:.2f}, the largest"
        cells = (
            check.energy or "denoiser",
            f"{check.size[0]} x {check.size[1]}",
            f"{check.vocabulary:,}",
            str(check.workers),
            str(check.stage),
            _pair(plan.memory.total / MB, measured.memory_bytes / MB, ".0f"),
            _pair(plan.checkpoint_bytes / MB, measured.checkpoint_bytes / MB, ".1f"),
            _pair(plan.step_seconds, measured.seconds, ".2f") if check.energy is None else largest,
        )
        yield f"| {' | '.join(cells)} |"


def _pair(planned: float, measured: float, form: str) -> str:
    return f"{planned:{form}}, {measured:{form}} ({planned / measured - 1:+.0%})"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
