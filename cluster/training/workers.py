"""Training of a stage on Ray Train workers, restarted from its last checkpoint when a worker dies."""

import functools
import math
import os
import socket
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import pydantic
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import get_device
from torch import nn

from cluster.config import Cluster, is_private
from cluster.runtime.progress import Speaker, relay_warnings, speaker
from cluster.training.abandoned_workers import release_abandoned_workers
from cluster.training.collective_timeout import limit_collectives
from cluster.training.deepspeed_engine import ZeroEngine
from cluster.training.elastic_range import elastic_range
from cluster.training.monitor import Monitor, MonitoredRank
from cluster.training.outcomes import WorkerReport
from cluster.training.process_group import ProcessGroup
from cluster.training.ray_records import discard_ray_records, ray_records
from cluster.training.reporter import Reporter
from cluster.training.result import read_result, sweep_results, training_facts, write_result
from cluster.training.supervision import Restarts, supervise
from cluster.training.timed_collectives import timed_collectives
from cluster.training.trainer import Trainer
from cluster.training.watchdog import SHARE, Watchdog
from edlm.checkpoints.lease import Lease, LeaseLost
from edlm.checkpoints.state_slices import StateSource
from edlm.checkpoints.training_state import NoValidSnapshot, keep_final
from edlm.config import ConfigurationError
from edlm.data.batches import Batches, Rows
from edlm.data.local_splits import local_split
from edlm.data.preparation import Split
from edlm.data.read_ahead import ReadAhead
from edlm.data.stored_split import StoredSplit, open_split
from edlm.redaction import redact_logs
from edlm.storage_errors import StoreRefusal
from edlm.training.checkpointing import Checkpointing
from edlm.training.device_usage import DeviceUsage, peak_flop_per_second
from edlm.training.early_stopping import finished
from edlm.training.flops import expected_flop
from edlm.training.interfaces import Engine, NonFiniteLoss, Objective, Tracker
from edlm.training.loop import fit
from edlm.training.progress import parameter_counts, say_counts, say_emulation
from edlm.training.resume_compatibility import continuable_step
from edlm.training.settings import Training
from edlm.training.step_clock import StepClock
from edlm.training.validation import METRIC, validation_rows

T = TypeVar("T")
FINAL = (ConfigurationError, LeaseLost, NoValidSnapshot, NonFiniteLoss, StoreRefusal)
"""Errors that every restart would meet again."""


@dataclass(frozen=True)
class TrainingTask:
    """Training to run on the workers, to which all of it is sent."""

    name: str
    objective: Callable[[], Objective]
    """Called on every worker: a module-level function with its arguments."""
    data: str
    """URI of the prepared data."""
    split: Split
    length: int
    training: Training
    seed: int
    workspace: str
    """URI for checkpoints and the result."""
    tracker: Callable[[], Tracker]
    """Called on rank 0 only."""
    start: tuple[str, int] | None = None
    """(URI, step) of the final snapshot of a shorter training, to continue from; the workspace's own come first."""
    lease: Lease | None = None
    """On the workspace: checked before a checkpoint or the result counts."""


def train(task: TrainingTask, cluster: Cluster) -> StateSource:
    """Train on the cluster and return the unsharded weights in float32, which are read when they are accessed.

    Raises ConfigurationError if the batch does not divide among the workers or the cluster lacks resources,
    NonFiniteLoss if training met one, and NoValidSnapshot if all checkpoints in the workspace are damaged. A worker
    that dies or hangs causes a restart; after `cluster.restarts` of them TrainingFailed is raised. A first SIGTERM or
    SIGINT makes the workers save and stop, and raises TrainingStopped.
    """
    if training_facts(task.workspace) is None:
        _held_out(task)  # raises before a worker starts
        _require_compilable(task.training, cluster)
        resources = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
        resources = {name: amount for name, amount in resources.items() if amount}
        _fit_on_workers(task, cluster, resources)
    facts = training_facts(task.workspace)
    assert facts is not None
    discard_ray_records(task.workspace)
    keep_final(task.workspace, continuable_step(task.training, int(str(facts["steps"]))))
    return read_result(task.workspace)


def _require_compilable(training: Training, cluster: Cluster) -> None:
    """Raise ConfigurationError for compiled blocks whose weights would be gathered within them."""
    if training.compiled and cluster.zero.stage == 3:
        raise ConfigurationError(
            "compiled: with ZeRO-3 the weights of a block are gathered within it, which cannot be compiled; set "
            "compiled: false, or cluster.zero.stage: 2"
        )


def _fit_on_workers(task: TrainingTask, cluster: Cluster, needed: dict[str, float]) -> None:
    on_gpu, alone, say = cluster.gpus_per_worker > 0, is_private(cluster), speaker()
    elastic = elastic_range(task.name, task.training, cluster, needed, alone)
    elastic.settle(0 if alone else cluster.start_timeout_seconds)

    records, store = ray_records(task.workspace)

    def attempt(monitor: Monitor) -> None:
        if elastic.size < cluster.workers:
            say(f"[{task.name}] the cluster has room for {elastic.size} of {cluster.workers} workers: trains with them")
        Trainer(
            functools.partial(_worker, task, cluster, say, monitor),
            ProcessGroup("nccl" if on_gpu else "gloo", int(cluster.collective_timeout_seconds)),
            ScalingConfig(num_workers=elastic.size, use_gpu=on_gpu, resources_per_worker=needed),
            RunConfig(
                # A unique name per attempt: our snapshots define what is valid, never Ray's record of an earlier run.
                name=f"{task.name}-{uuid.uuid4().hex[:8]}",
                storage_path=records,
                storage_filesystem=store,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
            autoscaled=not alone,
        ).fit()

    def ready(seconds: float) -> None:
        release_abandoned_workers()
        elastic.settle(seconds)

    supervise(
        task.name,
        attempt,
        done=lambda: training_facts(task.workspace) is not None,
        restarts=Restarts(
            cluster.restarts,
            cluster.recovery_timeout_seconds,
            ready=ready,
            growth=elastic.growth,
            shared=not alone,
        ),
        say=say,
    )


def _worker(task: TrainingTask, cluster: Cluster, say: Speaker, monitor: Monitor) -> None:
    """Run one worker and report what ends it early."""
    redact_logs()
    rank = torch.distributed.get_rank()
    relay_warnings(say, f"[{task.name}] rank {rank}: ")
    where = f"process {os.getpid()} on {socket.gethostname()}"
    watchdog = Watchdog(
        SHARE * cluster.collective_timeout_seconds,
        cluster.transfer_timeout_seconds,
        MonitoredRank(monitor, rank, where),
    )
    try:
        with watchdog:
            _train(task, cluster, say, monitor, watchdog)
    except Exception as error:
        final = error if isinstance(error, FINAL) else None
        reason = f"ended with {type(error).__name__}: {error}".splitlines()[0]
        monitor.report(WorkerReport(rank, where, reason, traceback.format_exc(), final))
        raise


def _train(task: TrainingTask, cluster: Cluster, say: Speaker, monitor: Monitor, watchdog: Watchdog) -> None:
    """Train on this worker. Its results go through the storage: Ray keeps only reports with a checkpoint."""
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
    limit_collectives(cluster.collective_timeout_seconds)
    monitor.join(torch.distributed.get_rank())
    objective = task.objective()
    assert isinstance(objective, nn.Module)
    clock, flop = StepClock(objective), expected_flop(objective, task.training.batch, task.length)
    counts = parameter_counts(objective.trained)  # now: ZeRO-3 leaves a worker its part of each parameter
    engine = ZeroEngine(objective, task.training, cluster.zero, get_device())
    if engine.rank == 0:
        say_counts(task.name, counts, say)
        say_emulation(task.name, task.training, engine.device, say)
    peak = peak_flop_per_second(engine.device, task.training.precision)
    usage = DeviceUsage(flop, None if peak is None else peak * engine.world_size)
    reporter = Reporter(task.name, task.training, task.length, task.tracker(), say, usage) if engine.rank == 0 else None
    before_commit = _nothing if reporter is None else functools.partial(_before_commit, task, reporter)
    checkpointing = Checkpointing(
        engine, task.workspace,
        from_rank_0=functools.partial(_from_rank_0, engine.device),
        retention=cluster.checkpoints,
        patience=cluster.checkpoint_patience_seconds,
        facts={"zero_stage": cluster.zero.stage},
        before_commit=before_commit,
        kept=continuable_step(task.training, task.training.steps),
        room=engine.room,
    )  # fmt: skip
    if engine.rank == 0:
        sweep_results(task.workspace, checkpointing.attempt)
    origin = checkpointing.resume(task.start)
    if origin is not None and engine.rank == 0:
        say(f"[{task.name}] resumes after step {engine.step}")
    rows_here = (task.training.steps - engine.step) * task.training.batch // engine.world_size
    tokens = open_split(task.data, task.split, rows_here * get_context().get_local_world_size())
    if isinstance(tokens, StoredSplit) and engine.rank == 0:
        say(f"[{task.name}] fetches rows from {task.data} as they are needed, without a copy of the {task.split} split")
    batches = Batches(tokens, task.length, task.training.batch, task.seed)
    reading = nullcontext(batches.rows)
    if isinstance(tokens, StoredSplit):
        reading = ReadAhead(batches.rows, task.training.steps)
    requested = monitor.stop_poll() if engine.rank == 0 else _never

    objective.register_forward_pre_hook(lambda *_: watchdog.beat())  # micro-steps, and batches of a validation

    def save(engine: Engine) -> None:
        with watchdog.paused():  # it waits for the checkpoint before, which has its own patience
            checkpointing.save(engine)

    with reporter or nullcontext():
        log, held_out = reporter.log if reporter else _unheard, _held_out(task)
        with checkpointing, watchdog.stepping(), timed_collectives(clock), reading as read_rows:
            if task.start is not None and origin == task.start and finished(engine, task.training):
                save(engine)  # of one that stopped early: no step follows after which one is due
            rows = read_rows if reporter is None else reporter.profiled(read_rows)
            complete = fit(engine, rows, task.training, task.seed, log, save, held_out, requested, clock)
        if reporter is not None:
            reporter.stop(engine)
        if complete:
            write_result(
                engine, task.workspace, checkpointing.attempt, {**_facts(engine, task.training), **counts},
                cluster.checkpoint_patience_seconds, before_commit, engine.room,
            )  # fmt: skip
    if not complete and engine.rank == 0:
        monitor.stopped(engine.step)


def _held_out(task: TrainingTask) -> Rows | None:
    """Return the rows of every validation, for which its split is copied, too; None if the training has none."""
    if task.training.validate_every is None:
        return None
    return validation_rows(local_split(task.data, "validation"), task.training)


def _before_commit(task: TrainingTask, reporter: Reporter) -> None:
    """Secure the metrics of the steps that are to count, and raise LeaseLost if another command writes them now."""
    reporter.secure()
    if task.lease is not None:
        task.lease.require()


def _facts(engine: Engine, training: Training) -> dict[str, pydantic.JsonValue]:
    lowest, _ = engine.validation.tolist()
    validated = {} if training.validate_every is None or lowest == math.inf else {METRIC: lowest}
    return {"steps": engine.step, **validated}


def _from_rank_0(device: torch.device, value: T) -> T:
    """Return, on every rank, the value on rank 0."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=device)
    return box[0]


def _unheard(step: int, metrics: Mapping[str, float]) -> None:
    """Discard the metrics of ranks other than 0, which equal those of rank 0."""


def _nothing() -> None:
    """Secure the metrics of ranks other than 0, which are those of rank 0."""


def _never() -> bool:
    """Return whether a stop was requested, on ranks other than 0, which ask rank 0 alone."""
    return False
