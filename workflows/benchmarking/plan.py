"""Plan of an experiment on given devices: what every training needs, and how long it takes, before anything runs."""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import psutil
import torch
import tyro

from cluster.config import Zero
from edlm.config import ConfigurationError, NonNegativeFloat, Positive, PositiveFloat, config, load, parse
from edlm.models.readout import CPU_CHUNK
from edlm.planning.devices import DEVICES, GB, TERA, Device, parse_devices
from edlm.planning.training_memory import SHARDINGS, Sharding, TrainingMemory
from edlm.planning.training_plan import Assumptions, TrainingPlan, remedies
from workflows.benchmarking.planned_stages import MetaModels, PlannedStage, vocabulary_of
from workflows.experiment import Experiment
from workflows.reporting.document import Bullet, Bullets, DocumentBlock, Heading, Paragraph, Table

MILLION, BILLION = 10**6, 10**9
THIS = "this"  # name of the processor of this machine, among devices
PROBE, PROBE_SECONDS = 1024, 0.5  # width of the matrices whose product is timed, and for how long
LOOPBACK_BYTES = 1e9  # per second, between processes of this machine
METHOD = (
    "Nothing was run: parameters are those of the networks without weights, FLOP and memory follow from formulas "
    "(edlm/training/flops.py, edlm/planning), and times from the peak of the device and the assumptions below. Memory "
    "is per device, of the largest micro-step, in GB (10^9 bytes). Bytes sent are per device and step, with ring "
    "collectives that are not hidden behind the passes."
)


@config
class Planning:
    """Settings of a plan."""

    experiment: tyro.conf.Positional[str] = ""
    """File of the experiment."""
    devices: str = "8xH100"
    """Number and name of the devices: A100, B200, H100, H200, L40S; `this` for the processor of this machine, measured;
    or any other name, with the four settings that follow."""
    peak_tflops: PositiveFloat | None = None
    """Peak TFLOP per second of a device in the precision of the trainings. None: that of its data sheet."""
    memory_gb: PositiveFloat | None = None
    """Memory of a device in GB (10^9 bytes). None: that of its data sheet."""
    link_gb_per_second: PositiveFloat | None = None
    """Bandwidth between devices of one machine, per direction. None: that of the data sheet."""
    network_gb_per_second: PositiveFloat | None = None
    """Bandwidth of a device to other machines. None: 400 Gb/s, of A100 and L40S 200 Gb/s."""
    devices_per_machine: Positive = 8
    """Devices that the faster link joins."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """Stage of ZeRO. None: that of the experiment's `cluster` section."""
    vocabulary: Positive | None = None
    """Number of tokens. None: that of the tokenizer, which is read if it is one of Hugging Face."""
    price_per_hour: NonNegativeFloat = 0.0
    """Price of a device per hour, in any currency; 0: costs are left out."""
    assumptions: Assumptions = Assumptions()
    """What is taken for granted of the cluster."""


def plan_blocks(settings: Planning) -> tuple[str, list[DocumentBlock]]:
    """Return the title and the blocks of a plan; raise ConfigurationError for settings that do not go together."""
    if not settings.experiment:
        raise ConfigurationError("plan: name the file of an experiment, as in `plan EXPERIMENT.yaml --devices 64xH100`")
    experiment = load(Experiment, settings.experiment)
    count, _ = parse_devices(settings.devices)
    zero = experiment.cluster.zero
    if settings.zero_stage is not None:
        zero = parse(Zero, {"stage": settings.zero_stage, "offload": zero.offload})  # refuses offload at stage 0
    sharding = Sharding(zero.stage, zero.offload)
    device = device_of(settings, experiment.cluster.cpus_per_worker)
    models = MetaModels(experiment, settings.vocabulary or vocabulary_of(experiment))
    stages = list(models.stages())
    plans = {
        stage.name: TrainingPlan(
            stage.work, stage.training, experiment.data.length, device, count, sharding, settings.assumptions
        )
        for stage in stages
        if stage.work is not None
    }
    for name, plan in plans.items():
        _require_batch(name, plan)
    together, alone = models.measurements()
    hours = sum(plan.hours for plan in plans.values())
    spent = f"{hours:,.1f} hours, {hours * count:,.0f} device-hours{_price(hours * count, settings)}"
    blocks: list[DocumentBlock] = [
        Paragraph(METHOD),
        _work_table(plans),
        _time_table(plans),
        Bullets(
            [
                Bullet("All trainings", spent),
                Bullet("Evaluation", f"{together:,} cells in parallel, {alone:,} timed one after the other"),
                *_unplanned(stages),
            ]
        ),
    ]
    for name, plan in plans.items():
        blocks += [Heading(f"Memory of {name}"), _memory_table(plan), Paragraph(verdict(plan))]
    return f"Plan of {experiment.name} on {settings.devices}", [*blocks, *_assumptions(settings, device)]


def device_of(settings: Planning, cpus: float) -> Device:
    """Return the device that the settings name, with their figures in place of its data sheet's."""
    count, name = parse_devices(settings.devices)
    given = (settings.peak_tflops, settings.memory_gb, settings.link_gb_per_second, settings.network_gb_per_second)
    if name == THIS:
        device = this_machine(count, cpus)
    elif name in DEVICES:
        device = DEVICES[name]
    elif None in given:
        raise ConfigurationError(
            f"devices: {name!r} is none of {', '.join(sorted(DEVICES))}, {THIS}; of another device give peak_tflops, "
            "memory_gb, link_gb_per_second and network_gb_per_second"
        )
    else:
        device = Device(name, 0.0, 0.0, 0.0, 0.0, 0.0)
    flops, memory, link, network = given
    changes = {} if flops is None else {"bfloat16_flops": flops * TERA, "float32_flops": flops * TERA}
    changes |= {} if memory is None else {"memory_bytes": memory * GB}
    changes |= {} if link is None else {"link_bytes": link * GB}
    changes |= {} if network is None else {"network_bytes": network * GB}
    return replace(device, **changes, per_machine=settings.devices_per_machine)


def this_machine(count: int, cpus: float) -> Device:
    """Return the processors of this machine, shared by `count` workers, with the measured speed of matrix products."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        bfloat16, float32 = (measured_flops(dtype) for dtype in (torch.bfloat16, torch.float32))
    finally:
        torch.set_num_threads(before)
    memory = psutil.virtual_memory().total / count
    return Device(THIS, bfloat16, float32, memory, LOOPBACK_BYTES, LOOPBACK_BYTES, os.cpu_count() or 1, CPU_CHUNK)


def measured_flops(dtype: torch.dtype) -> float:
    """Return the FLOP per second of products of matrices on this process's threads."""
    left = torch.randn(PROBE, PROBE, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.mm(left, left)  # warm-up
    count, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < PROBE_SECONDS:
        torch.mm(left, left)
        count += 1
    return count * 2 * PROBE**3 / seconds


def verdict(plan: TrainingPlan) -> str:
    """Return whether a training fits and, if it does not, by how much, and what would."""
    name, excess = plan.sharding.of(plan.training).name, plan.excess_bytes / GB
    if excess <= 0:
        return f"{name} fits, with {-excess:,.1f} GB per device to spare."
    would = ", or ".join(remedies(plan))
    fits = f"What would fit: {would}." if would else "No stage of ZeRO and no number of devices would fit."
    return f"{name} does not fit: {excess:,.1f} GB per device are missing. {fits}"


def _require_batch(name: str, plan: TrainingPlan) -> None:
    try:
        _ = plan.rows
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}, or plan another number of devices") from error


def _work_table(plans: dict[str, TrainingPlan]) -> Table:
    rows = [
        (name, f"{plan.work.trained / MILLION:,.2f}", f"{plan.work.frozen / MILLION:,.2f}", f"{plan.training.steps:,}",
         f"{plan.tokens / BILLION:,.3g}", f"{plan.work.flop:.3g}", f"{plan.work.flop * plan.training.steps:.3g}")
        for name, plan in plans.items()
    ]  # fmt: skip
    columns = (
        "training", "parameters, 10^6", "frozen ones, 10^6", "steps", "tokens, 10^9", "FLOP per step", "FLOP in all"
    )  # fmt: skip
    return Table("Work", columns, rows)


def _time_table(plans: dict[str, TrainingPlan]) -> Table:
    rows = [
        (name, plan.sharding.of(plan.training).name, f"{plan.memory.total / GB:,.3g}", f"{plan.compute_seconds:.3g}",
         f"{plan.communication_seconds:.3g}", f"{plan.sent / GB:,.3g}", f"{plan.tokens_per_second:,.0f}",
         f"{plan.mfu:.2f}", f"{plan.hours:,.3g}", f"{plan.checkpoint_bytes / GB:,.3g}",
         f"{plan.checkpoint_stop_seconds:.3g}", f"{plan.checkpoint_seconds:.3g}")
        for name, plan in plans.items()
    ]  # fmt: skip
    columns = (
        "training", "sharding", "GB per device", "passes, s per step", "collectives, s per step", "GB sent",
        "tokens per second", "MFU", "hours", "checkpoint, GB", "checkpoint stops, s", "written after, s",
    )  # fmt: skip
    return Table("Time, communication and checkpoints", columns, rows)


def _memory_table(plan: TrainingPlan) -> Table:
    parts = [field.name for field in dataclasses.fields(TrainingMemory)]
    rows = []
    for sharding in SHARDINGS:
        if sharding.of(plan.training) != sharding:
            continue
        other = replace(plan, sharding=sharding)
        memory, excess = other.memory, other.excess_bytes / GB
        rows.append(
            (sharding.name, *(f"{getattr(memory, part) / GB:,.3g}" for part in parts), f"{memory.total / GB:,.3g}",
             f"fits, {-excess:,.1f} GB free" if excess <= 0 else f"{excess:,.1f} GB too much")
        )  # fmt: skip
    caption = (
        f"GB per device of {plan.device.memory_bytes / GB:,.0f} GB, of which {plan.assumptions.reserved_gb:g} are "
        f"reserved; {plan.rows} rows of {plan.length} tokens per micro-step, {plan.training.precision}"
    )
    return Table(caption, ("sharding", *parts, "in all", "verdict"), rows)


def _unplanned(stages: Sequence[PlannedStage]) -> list[Bullet]:
    names = [stage.name for stage in stages if stage.work is None]
    return [Bullet("Not planned", f"{', '.join(names)}: no formula for these networks")] if names else []


def _price(device_hours: float, settings: Planning) -> str:
    return f", price {device_hours * settings.price_per_hour:,.0f}" if settings.price_per_hour else ""


def _assumptions(settings: Planning, device: Device) -> list[DocumentBlock]:
    assumed = settings.assumptions
    measured = "; products measured, the rest assumed" if device.name == THIS else ""
    figures = (
        f"{device.bfloat16_flops / TERA:,.3g} TFLOP/s in bfloat16, {device.float32_flops / TERA:,.3g} in float32, "
        f"{device.memory_bytes / GB:,.0f} GB, {device.link_bytes / GB:,.3g} GB/s within a machine of "
        f"{device.per_machine}, {device.network_bytes / GB:,.3g} GB/s beyond{measured}"
    )
    return [
        Heading("Assumptions"),
        Bullets(
            [
                Bullet(device.name, figures),
                Bullet("MFU of the passes", f"{assumed.mfu:.0%} of that peak"),
                Bullet("Collectives", f"{assumed.network_efficiency:.0%} of the bandwidth, not hidden behind passes"),
                Bullet(
                    "Checkpoints",
                    f"training stops while each device copies its part at {assumed.host_gb_per_second:g} GB/s; all "
                    f"together write {assumed.storage_gb_per_second:g} GB/s",
                ),
                Bullet("Not counted", "starts, restarts, the evaluation's hours, and what the file system caches"),
            ]
        ),
    ]
