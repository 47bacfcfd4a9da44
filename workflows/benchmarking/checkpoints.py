"""The cost of checkpoints: how long training stands still, how much memory they take, and how much a load reads.

Each size is measured in a process of its own, so that its peak memory is its own. Many ranks are simulated: their
manifest, load plan and retention are real, their tensors are not there.
"""

import dataclasses
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edlm.checkpoints.snapshot_manifest import (
    Manifest,
    PartRecord,
    SavedTensor,
    SnapshotPart,
    merged,
    part_name,
    write_manifest,
)
from edlm.checkpoints.snapshot_retention import Retention, remove, retain, snapshots
from edlm.checkpoints.snapshot_state import SnapshotState
from edlm.checkpoints.snapshot_writer import SnapshotWriter
from edlm.checkpoints.state_slices import StateSlice, shared_out, whole
from edlm.checkpoints.tensor_files import DTYPES
from edlm.checkpoints.training_state import open_snapshot
from edlm.config import Positive, PositiveFloat, config
from edlm.storage import join
from workflows.reporting.document import DocumentBlock, Paragraph, Table

GB = 10**9
METHOD = (
    "One rank, with one thread, saves a float32 state (weights, two moments, average) in the background and is idle "
    "until it is written: it takes no step meanwhile. Where training goes on, the write shares the processor with it, "
    "and the commit comes later. Times are medians; the first checkpoint, which allocates the host memory, stands "
    "apart. Memory is the peak above that of the state, relative to it. Then one of several ranks loads its part and "
    "verifies it."
)
KINDS = ("weights", "exp_avg", "exp_avg_sq", "ema")
WIDTH = 1024  # of the matrices that a measured state consists of
SHARE = 0.02  # of the time between checkpoints, for which training may stand still
_LAYER = ((4096, 4096),) * 4 + ((11_008, 4096),) * 3 + ((4096,),) * 2
SEVEN_BILLION = ((32_000, 4096), *(_LAYER * 32), (4096,))
"""Shapes of a transformer of 7e9 parameters: 32 layers of width 4096."""


@config
class Checkpoints:
    """Settings of the measurement."""

    gigabytes: tuple[PositiveFloat, ...] = (0.1, 0.5, 1.0, 2.0, 4.0)
    """State per rank, in GB (1e9 bytes): float32 weights, two moments and an average."""
    saves: Positive = 3
    """Checkpoints per size, after one that allocates the host memory; times are medians."""
    readers: Positive = 3
    """Workers that load a state; one of them is measured."""
    ranks: Positive = 256
    """Ranks of the simulated training."""
    storage: str | None = None
    """Folder for the checkpoints, which are removed. None: a temporary one."""


@dataclass(frozen=True)
class CheckpointCost:
    """What was measured of one size."""

    gigabytes: float
    first_pause: float
    """Seconds for which training stands still at the first checkpoint."""
    pause: float
    """The same at later ones."""
    commit: float
    """Seconds from then to the commit, with training idle."""
    memory: float
    """Peak memory above that of the state, relative to it."""
    load: float
    """Seconds in which one of the readers loads its slices."""
    read: float
    """Bytes that it reads, relative to its slices."""


@dataclass(frozen=True)
class SimulatedCost:
    """Seconds of what one process does for many ranks."""

    slices: int
    manifest_bytes: int
    merge: float
    """Of the records of all ranks, and writing the manifest."""
    read: float
    plan: float
    """Where the slices of a rank of another number of ranks lie."""
    retention: float
    """Removal of one checkpoint with the files of all ranks."""


def measure_checkpoints(settings: Checkpoints, say: Callable[[str], None]) -> Iterator[CheckpointCost]:
    """Yield what each size costs, smallest first, so that the largest may fail alone."""
    for gigabytes in sorted(settings.gigabytes):
        temporary = tempfile.TemporaryDirectory(prefix="edlm-checkpoints-", dir=settings.storage)
        with temporary as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(_measured, (gigabytes, settings.saves, settings.readers, folder))
        say(f"{gigabytes:g} GB: stands still for {cost.pause:.3f} s, committed after {cost.commit:.2f} s")
        yield cost


def _measured(gigabytes: float, saves: int, readers: int, folder: str) -> CheckpointCost:
    torch.set_num_threads(1)
    state = _state(gigabytes)
    size, before = sum(tensor.nbytes for tensor in state.values()), _peak_bytes()
    writer = SnapshotWriter(folder, "benchmark")
    pauses, commits = [], []
    for step in range(saves + 1):
        started = time.perf_counter()
        writer.save([whole(name, tensor) for name, tensor in state.items()], step)
        stopped = time.perf_counter()
        writer.wait()
        pauses.append(stopped - started)
        commits.append(time.perf_counter() - stopped)
    memory = (_peak_bytes() - before) / size
    opened = open_snapshot(join(folder, snapshots(folder)[-1]))
    assert isinstance(opened, SnapshotState)
    slices = shared_out([whole(name, tensor) for name, tensor in state.items()], readers - 1, readers)
    started = time.perf_counter()
    opened.fill(slices)
    load = time.perf_counter() - started
    read = opened.bytes_read / sum(one.values.nbytes for one in slices)
    first, later, commit = pauses[0], pauses[1:], commits[1:]
    return CheckpointCost(gigabytes, first, _median(later), _median(commit), memory, load, read)


def _state(gigabytes: float) -> dict[str, Tensor]:
    count = max(1, round(gigabytes * GB / (len(KINDS) * WIDTH * WIDTH * 4)))
    return {f"{kind}.{i}": torch.randn(WIDTH, WIDTH) for kind in KINDS for i in range(count)}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def simulate(ranks: int, storage: str | None) -> SimulatedCost:
    """Measure what one process does for `ranks` ranks that split each tensor of a state of 7e9 parameters (ZeRO-3)."""
    tensors = [
        SavedTensor(name=f"{kind}.{i}", dtype="F32", shape=shape)
        for kind in KINDS
        for i, shape in enumerate(SEVEN_BILLION)
    ]
    records = [_record(tensors, rank, ranks) for rank in range(ranks)]
    with tempfile.TemporaryDirectory(prefix="edlm-checkpoints-", dir=storage) as folder:
        laps = _Laps()
        merged_tensors, parts = merged(records)
        manifest = Manifest(step=1, attempt="a", world_size=ranks, tensors=merged_tensors, parts=parts)
        uri = join(folder, "step-00000001-a")
        write_manifest(uri, manifest)
        merge = laps.lap()
        opened = open_snapshot(uri)
        read = laps.lap()
        assert isinstance(opened, SnapshotState)
        opened.plan(_slices(tensors, 0, ranks * 3 // 4))
        plan = laps.lap()
        size = (Path(uri) / "manifest.json").stat().st_size
        for step in (1, 2, 3):
            _empty_snapshot(Path(folder), step, manifest, ranks)
        laps.lap()
        retain(folder, join(folder, snapshots(folder)[-1]), Retention())
        retention = laps.lap()
        remove(folder, snapshots(folder))
    return SimulatedCost(sum(len(part.slices) for part in parts), size, merge, read, plan, retention)


def checkpoint_blocks(costs: list[CheckpointCost], many: SimulatedCost, settings: Checkpoints) -> list[DocumentBlock]:
    """Return a table of the measured sizes and one of the simulated ranks."""
    columns = (
        "GB per rank", "first stop, s", "stop, s", f"interval of which the stop is {SHARE:.0%}, s",
        "committed after, s", "memory, times the state", "load, s", "bytes read, times the slices",
    )  # fmt: skip
    rows = [
        (f"{cost.gigabytes:g}", f"{cost.first_pause:.3f}", f"{cost.pause:.3f}", f"{cost.pause / SHARE:.0f}",
         f"{cost.commit:.2f}", f"{cost.memory:.2f}", f"{cost.load:.2f}", f"{cost.read:.3f}")
        for cost in costs
    ]  # fmt: skip
    simulated = (
        f"{many.slices:,}", f"{many.manifest_bytes / 2**20:.1f}",
        *(f"{seconds:.2f}" for seconds in (many.merge, many.read, many.plan, many.retention)),
    )  # fmt: skip
    work = (
        "slices", "manifest, MiB", "merge the records and write the manifest, s", "read it, s",
        "plan a load by three quarters as many ranks, s", "remove a checkpoint of all ranks, s",
    )  # fmt: skip
    caption = f"{settings.ranks} simulated ranks, 7e9 parameters under ZeRO-3, in one process"
    return [
        Paragraph(METHOD),
        Table(f"State per rank; 1 of {settings.readers} ranks loads", columns, rows),
        Table(caption, work, [simulated]),
    ]


class _Laps:
    """Stopwatch: seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def _run(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return (offset, count) of one rank's part of a tensor under ZeRO-3: equal parts, the last ones shorter."""
    size = -(-numel // ranks)
    return min(numel, rank * size), max(0, min(size, numel - rank * size))


def _record(tensors: list[SavedTensor], rank: int, ranks: int) -> PartRecord:
    runs = [(i, *_run(torch.Size(tensor.shape).numel(), rank, ranks)) for i, tensor in enumerate(tensors)]
    slices = tuple(run for run in runs if run[2])
    size = sum(count * DTYPES[tensors[i].dtype].itemsize for i, _, count in slices)
    part = SnapshotPart(name=part_name(rank), bytes=size + 8, start=8, digests="0" * 64, slices=slices)
    return PartRecord(tensors=tuple(tensors), part=part)


def _slices(tensors: list[SavedTensor], rank: int, ranks: int) -> list[StateSlice]:
    """Return slices without memory."""
    slices = []
    for tensor in tensors:
        shape = torch.Size(tensor.shape)
        offset, count = _run(shape.numel(), rank, ranks)
        slices.append(StateSlice(tensor.name, shape, offset, torch.empty(count, device="meta")))
    return slices


def _empty_snapshot(folder: Path, step: int, manifest: Manifest, ranks: int) -> None:
    path = folder / f"step-{step:08d}-a"
    path.mkdir(exist_ok=True)
    for rank in range(ranks):
        for suffix in ("safetensors", "sha256", "json"):
            (path / f"{part_name(rank)}.{suffix}").touch()
    write_manifest(str(path), dataclasses.replace(manifest, step=step))
