"""The cost of tracking: for how long a training's loop records its metrics, and what background threads take besides.

A training in one process, whose metrics go to MLflow's SQLite database as those of a stage do: to a journal by the
loop's own thread, which is measured here, and from there to the database by a thread in the background.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cluster.config import Tracking
from cluster.tracking.run_tracker import RunTracker
from cluster.tracking.runs import open_tracking
from edlm.config import Positive, config
from edlm.data.corpus import Embedded
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.tokenizer_kinds import Characters
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear
from edlm.training.local_training import train
from edlm.training.objectives import Denoising
from edlm.training.settings import Training
from edlm.training.step_clock import METRICS
from workflows.reporting.document import DocumentBlock, Paragraph, Table

MAX_SHARE = 0.01  # of the loop's time, for which it may record metrics
METHOD = (
    "A denoiser is trained in one process and on one thread, and each step is recorded in MLflow, into SQLite. The "
    "loop's thread calls the tracker's `log`, whose seconds are measured, and nothing else of the tracker; background "
    "threads send what was logged. Their processor time is that of the process without the loop's thread."
)
WORKER_METRICS = ("tokens_per_second", "memory_mib", "model_flop_per_second", "mfu", *METRICS)
"""Metrics that a worker of a stage adds to those of the loop; what values they have does not matter here."""


@config
class TrackingCost:
    """Settings of the measurement."""

    steps: Positive = 400
    """Steps of each training."""
    log_every: tuple[Positive, ...] = (1, 50)
    """After how many steps the loop records those that it took."""
    width: Positive = 128
    """Channels per position of the denoiser."""
    layers: Positive = 4
    """Layers of the denoiser."""
    length: Positive = 128
    """Tokens per sequence."""
    batch: Positive = 8
    """Sequences per step."""


@dataclass
class LoopCost:
    """What was measured of one training."""

    log_every: int
    steps: int
    values: int = 0
    """Metrics of a step."""
    logged: list[float] = field(default_factory=list)
    """Seconds of each call of `log`, in the loop's thread."""
    loop: float = 0.0
    """Seconds of the steps, and of recording them."""
    background: float = 0.0
    """Seconds of processor time of all other threads."""

    @property
    def recording(self) -> float:
        """Seconds per step for which the loop's thread records."""
        return sum(self.logged) / self.steps

    @property
    def share(self) -> float:
        """Of the loop's time, that of recording."""
        return sum(self.logged) / self.loop


def measure_tracking(settings: TrackingCost, say: Callable[[str], None]) -> Iterator[LoopCost]:
    """Yield what recording costs a training, for every interval."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="edlm-tracking-") as root:
        data = Path(root, "data")
        data.mkdir()
        source = Data(
            corpus=Embedded(),
            tokenizer=Characters(),
            length=settings.length,
            shares=Shares(validation=0.1, judge=0.0),
        )
        vocabulary = prepare(source, data, progress=lambda _: None).vocabulary
        runs = open_tracking(Tracking(), root)
        for every in settings.log_every:
            tracker = runs.tracker(runs.start(f"every-{every}"), Path(root, f"journal-{every}"))
            cost = _measured(settings, every, data, vocabulary, tracker)
            say(f"log_every {every}: {1000 * cost.recording:.3f} ms per step, {cost.share:.2%} of the loop")
            yield cost


def _measured(settings: TrackingCost, every: int, data: Path, vocabulary: int, tracker: RunTracker) -> LoopCost:
    torch.manual_seed(0)
    network = TransformerConfig(width=settings.width, layers=settings.layers, heads=4)
    objective = Denoising(Denoiser(network, vocabulary), LogLinear(), seed=0)
    training = Training(steps=settings.steps, batch=settings.batch, log_every=every, checkpoint_every=settings.steps)
    cost = LoopCost(every, settings.steps)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        values = {**metrics, **dict.fromkeys(WORKER_METRICS, metrics["seconds_per_step"])}
        started = time.perf_counter()
        tracker.log(step, values)
        cost.logged.append(time.perf_counter() - started)
        cost.values = len(values)

    tracker.begin()
    started, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
    train(objective, data, training, say=lambda _: None, log=log)
    cost.loop = time.perf_counter() - started
    cost.background = time.process_time() - process - (time.thread_time() - thread)
    tracker.finish("FINISHED")
    return cost


def tracking_blocks(costs: list[LoopCost]) -> list[DocumentBlock]:
    """Return a table of what recording costs, by interval."""
    columns = (
        "log_every", "metrics per step", "seconds per step", "in the loop's thread, ms per step",
        f"share of the loop (at most {MAX_SHARE:.0%})", "longest call, ms", "other threads, ms of a processor per step",
    )  # fmt: skip
    rows = [
        (str(cost.log_every), str(cost.values), f"{cost.loop / cost.steps:.3f}",
         f"{1000 * cost.recording:.3f}", f"{cost.share:.2%}", f"{1000 * max(cost.logged):.2f}",
         f"{1000 * cost.background / cost.steps:.1f}")
        for cost in costs
    ]  # fmt: skip
    return [Paragraph(METHOD), Table("Recording the metrics of every step, into SQLite", columns, rows)]
