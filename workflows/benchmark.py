"""Benchmark: samplers, training, preparation, checkpoints, a service under load, and a plan of what training needs.

python -m workflows.benchmark sample [--vocabularies 28 50257 --steps 32 --folder FOLDER ...]
    race with the published and the autoregressive sampler; --models FILE races trained networks
python -m workflows.benchmark train [--vocabularies 28 50257 --lengths 256 1024 --workers 1 2 --folder FOLDER ...]
    race training steps with the published step, and workers with one process
python -m workflows.benchmark constraints [--tokenizer FOLDER --steps 8 --folder FOLDER ...]
    race samplers with constraints with plain diffusion
python -m workflows.benchmark constrained-bounds --model MODEL --data URI [--steps 2 4 8 --folder FOLDER ...]
    bounds on held-out texts that match a pattern, with every energy of a trained model
python -m workflows.benchmark checkpoint [--gigabytes 0.1 1 4 --ranks 256 --folder FOLDER ...]
    what checkpoints cost a training, by the size of its state
python -m workflows.benchmark tracking [--steps 400 --log_every 1 50 --folder FOLDER ...]
    for how long a training's loop records its metrics
python -m workflows.benchmark prepare --texts FILE ... [--tokenizer FOLDER --megabytes 200 --tasks 2 ...]
    race preparation by Ray tasks with one process
python -m workflows.benchmark plan EXPERIMENT --devices 64xH100 [--zero-stage 3 --folder FOLDER ...]
    what the trainings of an experiment need, and how long they take, before anything runs
python -m workflows.benchmark serve [--requests 48 --width 128 --folder FOLDER ...]
    compare three kinds of batching, on a Ray instance of this command
python -m workflows.benchmark serve --url http://127.0.0.1:8000 [--rate 2 --candidates 1 8 --cancelled_share 0.1 ...]
    load a running service; the API key is read from EDLM_API_KEY
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cluster.tracking.provenance import commit, machine, packages
from edlm.atomic_file import replacing
from edlm.config import Positive, PositiveFloat, config, dump, from_flags
from edlm.models.execution import computes_bfloat16
from workflows.benchmarking.arrivals import plan as plan_requests
from workflows.benchmarking.batching_comparison import Loads, contest
from workflows.benchmarking.checkpoints import Checkpoints, checkpoint_blocks, measure_checkpoints, simulate
from workflows.benchmarking.constrained_bounds import (
    ConstrainedLikelihood,
    constrained_bounds_blocks,
    measure_constrained_bounds,
)
from workflows.benchmarking.constraints import ConstrainedSampling, measure_constraints, measured_model
from workflows.benchmarking.constraints_document import constraints_blocks
from workflows.benchmarking.load import RequestSettings, load
from workflows.benchmarking.load_tables import NONE, endings_table, latency_table
from workflows.benchmarking.plan import Planning, plan_blocks
from workflows.benchmarking.preparation import PreparationSpeed, measure_preparation, preparation_blocks
from workflows.benchmarking.rejection import measure_rejection
from workflows.benchmarking.sampling import Sampling, measure
from workflows.benchmarking.sampling_document import sampling_blocks
from workflows.benchmarking.serve_document import ONE, OURS, STATIC, contest_blocks
from workflows.benchmarking.tracking import TrackingCost, measure_tracking, tracking_blocks
from workflows.benchmarking.training import TrainingSteps, measure_training
from workflows.benchmarking.training_document import training_blocks
from workflows.benchmarking.untrained import untrained_bundle
from workflows.reporting.document import (
    Bullet,
    Bullets,
    DocumentBlock,
    Heading,
    ReportDocument,
    Verbatim,
)
from workflows.reporting.markdown_page import markdown_page
from workflows.stage import user_errors


@config
class SampleBenchmark(Sampling):
    """Flags of `sample`."""

    folder: str | None = None
    """Folder for `sample.md`, or `sample-trained.md` of trained networks; None only prints the document."""


@config
class TrainBenchmark(TrainingSteps):
    """Flags of `train`."""

    folder: str | None = None
    """Folder for `train.md`; None only prints the document."""


@config
class ConstraintsBenchmark(ConstrainedSampling):
    """Flags of `constraints`."""

    folder: str | None = None
    """Folder for `constraints.md`; None only prints the document."""


@config
class ConstrainedBoundsBenchmark(ConstrainedLikelihood):
    """Flags of `constrained-bounds`."""

    folder: str | None = None
    """Folder for `constrained-bounds.md`; None only prints the document."""


@config
class CheckpointBenchmark(Checkpoints):
    """Flags of `checkpoint`."""

    folder: str | None = None
    """Folder for `checkpoint.md`; None only prints the document."""


@config
class TrackingBenchmark(TrackingCost):
    """Flags of `tracking`."""

    folder: str | None = None
    """Folder for `tracking.md`; None only prints the document."""


@config
class PrepareBenchmark(PreparationSpeed):
    """Flags of `prepare`."""

    folder: str | None = None
    """Folder for `prepare.md`; None only prints the document."""


@config
class PlanBenchmark(Planning):
    """Arguments of `plan`."""

    folder: str | None = None
    """Folder for `plan.md`; None only prints the document."""


@config
class ServeBenchmark(Loads):
    """Flags of `serve`."""

    url: str | None = None
    """URL of a running service; None: three ways to batch, behind a Ray Serve instance of this command."""
    rate: PositiveFloat | None = None
    """Requests per second offered to `url`; None: all at once."""
    width: Positive = 128
    """Channels per position of the untrained model that is served when `url` is None."""
    layers: Positive = 4
    """Layers of that model."""
    head_width: Positive = 64
    """Width of the light head of its step energy."""
    length: Positive = 256
    """Tokens per canvas of that model."""
    slots: Positive = 16
    """Texts that run at once, and the largest static batch."""
    step_seconds: PositiveFloat = 0.1
    """Seconds of work per engine step of continuous batching; a pass takes longer on a CPU than on a GPU."""
    wait_seconds: PositiveFloat = 0.05
    """How long a static batch waits for more requests."""
    port: Positive = 8765
    """TCP port of the Ray Serve instance of this command."""
    folder: str | None = None
    """Folder for `serve.md`; None only prints the document."""


def sample(settings: SampleBenchmark) -> Iterator[ReportDocument]:
    """Run the race and yield, after each sampler that has been measured, the document about all so far."""
    results = []
    for result in measure(settings, _device(), _say):
        results.append(result)
        blocks = sampling_blocks(results, trained=settings.models is not None)
        yield ReportDocument("Speed of the samplers", [*blocks, *_origin(settings)])


def train(settings: TrainBenchmark) -> Iterator[ReportDocument]:
    """Race training steps and yield, after each step that has been measured, the document about all so far."""
    device, results = _device(), []
    for result in measure_training(settings, device, _say):
        results.append(result)
        blocks = training_blocks(results, settings, emulated=not computes_bfloat16(device))
        yield ReportDocument("Speed of training", [*blocks, *_origin(settings)])


def constraints(settings: ConstraintsBenchmark) -> ReportDocument:
    """Run the race of samplers with constraints and return the document about it."""
    networks, tokenizer = measured_model(settings)
    rows = measure_constraints(settings, networks, tokenizer, _say)
    costs = measure_rejection(
        networks, tokenizer, settings.length, settings.letters, settings.rounds, settings.seed, _say
    )
    return ReportDocument("Cost of constraints", [*constraints_blocks(rows, list(costs), settings), *_origin(settings)])


def constrained_bounds(settings: ConstrainedBoundsBenchmark) -> ReportDocument:
    """Measure samplers with constraints on texts that satisfy them and return the document about it."""
    length, patterns = measure_constrained_bounds(settings, _say)
    return ReportDocument(
        "Likelihood under constraints",
        [*constrained_bounds_blocks(length, patterns, settings), *_origin(settings)],
    )


def checkpoint(settings: CheckpointBenchmark) -> ReportDocument:
    """Measure the cost of checkpoints and return the document about it."""
    costs = list(measure_checkpoints(settings, _say))
    blocks = checkpoint_blocks(costs, simulate(settings.ranks, settings.storage), settings)
    return ReportDocument("Cost of checkpoints", [*blocks, *_origin(settings)])


def tracking(settings: TrackingBenchmark) -> ReportDocument:
    """Measure the cost of tracking and return the document about it."""
    blocks = tracking_blocks(list(measure_tracking(settings, _say)))
    return ReportDocument("Cost of tracking", [*blocks, *_origin(settings)])


def prepare(settings: PrepareBenchmark) -> ReportDocument:
    """Measure preparation and return the document about it."""
    size, runs = measure_preparation(settings, _say)
    return ReportDocument("Speed of preparation", [*preparation_blocks(size, runs, settings), *_origin(settings)])


def plan(settings: PlanBenchmark) -> ReportDocument:
    """Return the document about the plan of an experiment."""
    title, blocks = plan_blocks(settings)
    return ReportDocument(title, [*blocks, *_origin(settings)])


def serve(settings: ServeBenchmark) -> ReportDocument:
    """Measure a service under load and return the document about it."""
    title, blocks = _loaded(settings.url, settings) if settings.url is not None else _contest(settings)
    return ReportDocument(title, [*blocks, *_origin(settings)])


def _contest(settings: ServeBenchmark) -> tuple[str, list[DocumentBlock]]:
    from cluster.benchmarking.services import contestants  # deferred: importing Ray takes seconds

    names = {"continuous": OURS, "one": ONE, "static": STATIC}
    with tempfile.TemporaryDirectory(prefix="edlm-") as folder:
        bundle = untrained_bundle(
            Path(folder), settings.width, settings.layers, settings.head_width, settings.length, settings.seed
        )
        with contestants(
            bundle, settings.slots, settings.step_seconds, settings.wait_seconds, settings.port
        ) as by_batching:
            urls = {names[batching]: url for batching, url in by_batching.items()}
            result = contest(urls, OURS, settings, _say)
    return "Throughput of the service", contest_blocks(result, settings)


def _loaded(url: str, settings: ServeBenchmark) -> tuple[str, list[DocumentBlock]]:
    """Load a running service, whose model, limits and machine are its own, and return title and blocks."""
    requests = plan_requests(
        settings.requests, settings.rate, settings.steps, settings.candidates, settings.seed, settings.cancelled_share,
        settings.cancel_seconds,
    )  # fmt: skip
    deadline = settings.deadline_seconds
    request_settings = RequestSettings(
        max_tokens=settings.max_tokens, deadline=deadline, states=True, key=os.environ.get("EDLM_API_KEY")
    )
    outcomes = {"as served": load(url, requests, request_settings)}
    offered = "all at once" if settings.rate is None else f"{settings.rate:g} per second"
    return f"Throughput of {url}", [
        endings_table(
            f"{len(requests)} requests, {offered}, each with a deadline of {deadline:g} s", outcomes, deadline
        ),
        latency_table("Seconds of completed requests", outcomes),
    ]


def _device() -> torch.device:
    """Return the device to measure on."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the memory profiler, which logs to standard error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _say(line: str) -> None:
    print(f"[benchmark] {line}", flush=True)


def _origin(settings: object) -> list[DocumentBlock]:
    facts = {**machine(), **packages(), "threads": str(torch.get_num_threads()), "commit": str(commit() or NONE)}
    return [
        Heading("Settings and machine"),
        Bullets([Bullet(name, value) for name, value in facts.items()]),
        Bullets([Bullet("Written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")]),
        Verbatim("Settings", dump(settings)),
    ]


def _at_once(document_of: Callable[[Any], ReportDocument]) -> Callable[[Any], Iterable[ReportDocument]]:
    return lambda settings: [document_of(settings)]


COMMANDS: Mapping[str, tuple[type[Any], Callable[[Any], Iterable[ReportDocument]]]] = {
    "sample": (SampleBenchmark, sample),
    "train": (TrainBenchmark, train),
    "constraints": (ConstraintsBenchmark, _at_once(constraints)),
    "constrained-bounds": (ConstrainedBoundsBenchmark, _at_once(constrained_bounds)),
    "checkpoint": (CheckpointBenchmark, _at_once(checkpoint)),
    "tracking": (TrackingBenchmark, _at_once(tracking)),
    "prepare": (PrepareBenchmark, _at_once(prepare)),
    "plan": (PlanBenchmark, _at_once(plan)),
    "serve": (ServeBenchmark, _at_once(serve)),
}


def main() -> None:
    name, *flags = sys.argv[1:] or [""]
    if name not in COMMANDS:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    flags_of, documents_of = COMMANDS[name]
    settings, text = from_flags(flags_of, flags, __doc__ or ""), ""
    if isinstance(settings, SampleBenchmark) and settings.models is not None:
        name += "-trained"
    with user_errors():
        for document in documents_of(settings):
            text = markdown_page(document)
            if settings.folder is not None:
                with replacing(Path(settings.folder, f"{name}.md")) as new:
                    new.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
