"""Benchmark: the speed of the samplers, the load that a service of them sustains, and the cost of checkpoints.

python -m workflows.benchmark sample [--vocabularies 28 50257 --steps 32 --folder FOLDER ...]
    race with the published and the autoregressive sampler; --models FILE races trained networks
python -m workflows.benchmark constraints [--tokenizer FOLDER --steps 8 --folder FOLDER ...]
    race samplers with constraints with plain diffusion
python -m workflows.benchmark constrained-bounds --model MODEL --data URI [--steps 2 4 8 --folder FOLDER ...]
    bounds on held-out texts that match a pattern, with every energy of a trained model
python -m workflows.benchmark checkpoint [--gigabytes 0.1 1 4 --ranks 256 --folder FOLDER ...]
    what checkpoints cost a training, by the size of its state
python -m workflows.benchmark serve [--requests 48 --width 128 --folder FOLDER ...]
    compare three kinds of batching, on a Ray instance of this command
python -m workflows.benchmark serve --url http://127.0.0.1:8000 [--rate 2 --candidates 1 8 --cancelled_share 0.1 ...]
    load a running service; the API key is read from EDLM_API_KEY
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cluster.tracking.provenance import commit, machine, packages
from edlm.config import Positive, PositiveFloat, config, dump, from_flags
from workflows.benchmarking.arrivals import plan
from workflows.benchmarking.batching_comparison import Loads, contest
from workflows.benchmarking.checkpoints import Checkpoints, checkpoint_blocks, measure_checkpoints, simulate
from workflows.benchmarking.constrained_bounds import (
    ConstrainedLikelihood,
    constrained_bounds_blocks,
    measure_constrained_bounds,
)
from workflows.benchmarking.constraints import WHOLE, ConstrainedSampling, measure_constraints
from workflows.benchmarking.load import RequestSettings, load
from workflows.benchmarking.load_tables import NONE, endings_table, latency_table
from workflows.benchmarking.sampling import RaceResult, Sampling, Size, measure
from workflows.benchmarking.serve_document import ONE, OURS, STATIC, contest_blocks
from workflows.benchmarking.untrained import untrained_bundle
from workflows.reporting.document import (
    Bullet,
    Bullets,
    DocumentBlock,
    Heading,
    Paragraph,
    ReportDocument,
    Table,
    Verbatim,
)
from workflows.reporting.markdown_page import markdown_page
from workflows.stage import user_errors

MIB = 2**20
METHOD = (
    "All samplers of a size run one after the other in every round, after a warm-up round; seconds are "
    "medians over the rounds (in brackets: minimum to maximum). Ratios are within one round. Naive is the published "
    "sampler as described, with its errors corrected, in float32, as are all samplers without a precision in the name; "
    "its steps cost the same, so that one step inside and one outside the window are timed. Times plain is relative "
    "to plain "
    "diffusion with the same networks. Whole sequences are scored for t from 0.8 to 1, light heads in every step. "
    "Kept per call: tokens of the speculative draft kept per pass of the head. "
    "Memory: peak memory of tensors besides the weights (naive: of one step)."
)
UNTRAINED = (
    "The networks are untrained: no two candidates are equal, which is the worst case for time, and the number of "
    "kept draft tokens "
    "is not that of trained networks (about one in three is rejected). Whole sequences are scored by the paper's NCE "
    "network. Text quality is measured with trained networks (--models)."
)
TRAINED = (
    "The networks are trained. Bounds are on -log p of held-out texts (for the autoregressive model: its "
    "likelihood); generative perplexity is the judge's, entropy is of the tokens of a text. Naive samplers and "
    "samplers that verify speculative drafts have the same distribution as their counterparts."
)

CONSTRAINED = (
    "Samplers run one after the other in every round, after a warm-up round; seconds are of the processor, medians "
    "over the rounds (in brackets: minimum to maximum), and ratios are within one round. The denoiser is untrained, "
    "and the energy of k > 1 is 0, which takes no time. A step of plain diffusion draws the positions that it "
    "unmasks; one that draws whole texts draws all masked positions, as a sampler with a constraint does."
)


@config
class SampleBenchmark(Sampling):
    """Flags of `sample`."""

    folder: str | None = None
    """Folder for `sample.md`, or `sample-trained.md` of trained networks; None only prints the document."""


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


def sample(settings: SampleBenchmark) -> ReportDocument:
    """Run the race and return the document about it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the memory profiler, which logs to standard error
    rows = list(measure(settings, device, _say))
    return ReportDocument(
        "Speed of the samplers",
        [
            Paragraph(METHOD),
            Paragraph(UNTRAINED if settings.models is None else TRAINED),
            *(_table(size, rows) for size in dict.fromkeys(row.size for row in rows)),
            *_origin(settings),
        ],
    )


def constraints(settings: ConstraintsBenchmark) -> ReportDocument:
    """Run the race of samplers with constraints and return the document about it."""
    rows = measure_constraints(settings, _say)
    whole = next(row.times for row in rows if row.name == WHOLE)
    cells = []
    for row in rows:
        seconds, automaton = row.times, row.automaton
        sizes = (NONE,) * 3
        if automaton is not None:
            sizes = tuple(f"{size:,}" for size in (*automaton.transitions.shape, len(automaton.edges.to)))
        cells.append(
            (row.name, f"{seconds.median:.3g} ({min(seconds.rounds):.3g} to {max(seconds.rounds):.3g})",
             _ratio(whole.times_of(seconds)), *sizes)
        )  # fmt: skip
    columns = ("sampler", "seconds per text", f"times {WHOLE}", "states", "classes of tokens", "transitions")
    caption = f"L = {settings.length}, T = {settings.steps}, a denoiser of {settings.layers} layers of {settings.width}"
    return ReportDocument(
        "Cost of constraints", [Paragraph(CONSTRAINED), Table(caption, columns, cells), *_origin(settings)]
    )


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
    requests = plan(
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


def _table(size: Size, rows: Sequence[RaceResult]) -> Table:
    size_rows = [row for row in rows if row.size == size]
    by_name, judged = {row.name: row for row in size_rows}, any(row.worth for row in size_rows)
    cells = []
    for row in size_rows:
        seconds = [value / size.batch for value in (row.times.median, min(row.times.rounds), max(row.times.rounds))]
        plain = by_name.get(row.plain)
        cells.append(
            (
                row.name + (f" ({row.scaled} timed)" if row.scaled else ""),
                f"{seconds[0]:.3g} ({seconds[1]:.3g} to {seconds[2]:.3g})",
                f"{size.length / seconds[0]:,.0f}",
                f"{row.calls[0]:.1f}", f"{row.calls[1]:.1f}",
                NONE if math.isnan(row.calls[2]) else f"{row.calls[2]:.1f}",
                f"{row.peak_bytes / MIB:.1f}",
                _ratio(plain.times.times_of(row.times)) if plain else NONE,
                _ratio(row.times.times_of(by_name[row.naive].times)) if row.naive else NONE,
                *(_worth(row) if judged else ()),
            )
        )  # fmt: skip
    columns = (
        "sampler", "seconds per sequence", "tokens per second", "denoiser calls", "energy calls", "kept per call",
        "memory, MiB", "times plain", "times faster than naive",
        *(("bound, nats per token", "generative perplexity", "entropy, nats") if judged else ()),
    )  # fmt: skip
    caption = f"|V| = {size.vocabulary:,}, L = {size.length}, {size.batch} at once, T = {size.steps}"
    return Table(caption, columns, cells)


def _worth(row: RaceResult) -> tuple[str, str, str]:
    worth = row.worth
    if worth is None:
        return NONE, NONE, NONE
    return (
        f"{worth.bound:.3f} ± {worth.standard_error:.3f}",
        f"{worth.generative_perplexity:.1f}",
        f"{worth.entropy:.2f}",
    )


def _ratio(ratio: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


COMMANDS: Mapping[str, tuple[type[Any], Callable[[Any], ReportDocument]]] = {
    "sample": (SampleBenchmark, sample),
    "constraints": (ConstraintsBenchmark, constraints),
    "constrained-bounds": (ConstrainedBoundsBenchmark, constrained_bounds),
    "checkpoint": (CheckpointBenchmark, checkpoint),
    "serve": (ServeBenchmark, serve),
}


def main() -> None:
    name, *flags = sys.argv[1:] or [""]
    if name not in COMMANDS:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    flags_of, document_of = COMMANDS[name]
    settings = from_flags(flags_of, flags, __doc__ or "")
    with user_errors():
        text = markdown_page(document_of(settings))
    if isinstance(settings, SampleBenchmark) and settings.models is not None:
        name += "-trained"
    if settings.folder is not None:
        folder = Path(settings.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
