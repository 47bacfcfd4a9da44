"""The speed of preparation: one process, and Ray tasks.

Each is measured in a process of its own, so that its peak memory is its own.
"""

import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from cluster.runtime.garbage import freeze_imports
from edlm.config import ConfigurationError, Positive, PositiveFloat, config, parse, plain
from edlm.data.corpus import Files
from edlm.data.preparation import Data, prepare
from edlm.data.shards import Shards
from edlm.data.splits import Shares
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.storage import digest_of, inventory
from workflows.reporting.document import DocumentBlock, Paragraph, Table

MB = 10**6
ONE, TASKS, APART = "one process", "{} Ray tasks", "{} processes apart"
METHOD = (
    "The whole preparation is timed: the corpus is read, its documents are shared out among the splits, tokenized and "
    "packed; with tasks also each shard's way to its file and back. Ray is started before. Processes apart prepare a "
    "part of the corpus each, at the same time, and share nothing but the machine: what its cores give at most. "
    "Contestants take turns; seconds are medians over the rounds (in brackets: minimum to maximum), ratios are within "
    "one round. MB (10^6 bytes) are of the text in UTF-8, memory is the peak of a process that packs, above what it "
    "took before. Every process has one thread. CPU seconds of the tasks are counted; on a busy machine they tell more "
    "than seconds."
)


@config
class PreparationSpeed:
    """Settings of the measurement."""

    texts: tuple[str, ...] = ()
    """Files of text, as of a corpus of kind `files`, at least one; they are repeated up to `megabytes`."""
    tokenizer: str = "hf://openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"
    """Folder, file or URI of a Hugging Face tokenizer."""
    megabytes: PositiveFloat = 200.0
    """Text that is prepared."""
    tasks: Positive = 2
    """Ray tasks at once, each with one CPU and one thread."""
    rounds: Positive = 1
    """How often everything is measured."""
    storage: str | None = None
    """Folder for the corpus and what is prepared, which are removed. None: a temporary one."""


@dataclass(frozen=True)
class PreparationRun:
    """One preparation: its seconds, its peak memory above that of its imports, and a digest of its files."""

    seconds: float
    cpu_seconds: float
    """Of this process and, with tasks, of theirs."""
    peak_bytes: int
    digest: str | None
    """None for parts of the corpus."""


def measure_preparation(
    settings: PreparationSpeed, say: Callable[[str], None]
) -> tuple[float, Mapping[str, Sequence[PreparationRun]]]:
    """Return the MB of text, and the runs of each contestant by its name, one per round."""
    with tempfile.TemporaryDirectory(prefix="edlm-preparation-", dir=settings.storage) as folder:
        path = Path(folder, "corpus.jsonl")
        size = write_corpus(path, settings)
        parts = divided(path, settings.tasks)
        contestants = {
            ONE: ([path], 0),
            TASKS.format(settings.tasks): ([path], settings.tasks),
            APART.format(settings.tasks): (parts, 0),
        }
        runs: dict[str, list[PreparationRun]] = {name: [] for name in contestants}
        for i in range(settings.rounds):
            for name, (files, tasks) in contestants.items():
                with tempfile.TemporaryDirectory(dir=folder) as target:
                    run = _prepared(files, Path(target), tasks, settings)
                say(f"round {i + 1}: {name}: {run.seconds:.1f} s, {size / run.seconds:.2f} MB/s")
                runs[name].append(run)
    return size, runs


def divided(path: Path, parts: int) -> list[Path]:
    """Write the lines of a file to so many files of about equal size, and return their paths."""
    files, most = [path.with_suffix(f".{part}.jsonl") for part in range(parts)], path.stat().st_size / parts
    with path.open("rb") as lines:
        for file in files:
            with file.open("wb") as target:
                for line in lines:
                    target.write(line)
                    if target.tell() >= most:
                        break
    return files


def _prepared(files: Sequence[Path], folder: Path, tasks: int, settings: PreparationSpeed) -> PreparationRun:
    """Prepare each file in a process of its own, all at once, with so many tasks (0: without Ray)."""
    trees = [plain(_data(file, settings)) for file in files]
    with multiprocessing.get_context("spawn").Pool(len(files)) as pool:
        pool.map(_worker_cpu, [3.0 if len(files) > 1 else 0.0] * len(files), chunksize=1)  # all have started
        arguments = [(tree, str(folder / str(part)), tasks) for part, tree in enumerate(trees)]
        runs = pool.starmap(prepare_here, arguments, chunksize=1)
    return PreparationRun(
        max(run.seconds for run in runs),
        sum(run.cpu_seconds for run in runs),
        max(run.peak_bytes for run in runs),
        runs[0].digest if len(runs) == 1 else None,
    )


def _data(file: Path, settings: PreparationSpeed) -> Data:
    return Data(
        corpus=Files(paths=(str(file),)),
        tokenizer=HuggingFaceTokenizer(uri=settings.tokenizer),
        length=1024,
        shares=Shares(validation=0.01),
    )


def preparation_blocks(
    size: float, runs: Mapping[str, Sequence[PreparationRun]], settings: PreparationSpeed
) -> list[DocumentBlock]:
    """Return how the preparations were measured, and a table of them; raise AssertionError if their files differ."""
    digests = {run.digest for rounds in runs.values() for run in rounds if run.digest is not None}
    assert len(digests) == 1, "the prepared files differ"
    rows = []
    for name, rounds in runs.items():
        seconds = [run.seconds for run in rounds]
        ratios = [one.seconds / run.seconds for one, run in zip(runs[ONE], rounds, strict=True)]
        cores = 1 if name == ONE else settings.tasks
        rows.append(
            (name, f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
             f"{size / statistics.median(seconds):.2f}", f"{size / statistics.median(seconds) / cores:.2f}",
             f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
             f"{statistics.median(run.cpu_seconds for run in rounds):.1f}",
             f"{max(run.peak_bytes for run in rounds) / 2**20:.0f}")
        )  # fmt: skip
    columns = ("preparation", "seconds", "MB/s", "MB/s per core", "times as fast", "CPU seconds", "memory, MiB")
    return [
        Paragraph(METHOD),
        Table(f"{size:.0f} MB of text; one process and tasks write the same bytes", columns, rows),
    ]


def write_corpus(path: Path, settings: PreparationSpeed) -> float:
    """Write the documents again and again as JSON lines, and return the MB of their text.

    Each begins with the number of its copy: equal shards would be tokenized once.
    """
    if not settings.texts:
        raise ConfigurationError("texts: missing; name files of text")
    documents = [document.text for document in Files(paths=settings.texts).documents()]
    if not documents:
        raise ConfigurationError(f"texts: there is no text in {', '.join(settings.texts)}")
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for i, document in enumerate(cycle(documents)):
            text = f"{i // len(documents)} {document}"
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            if size >= settings.megabytes * MB:
                return size / MB
    raise AssertionError("a cycle does not end")


def prepare_here(tree: dict[str, Any], folder: str, tasks: int) -> PreparationRun:
    """Prepare the data in this process, with so many tasks (0: without Ray)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    data, output = parse(Data, tree), Path(folder, "data")
    if tasks == 0:
        return _timed(data, output, None)
    from cluster.runtime.ray_connection import private_ray  # deferred: importing Ray takes seconds
    from cluster.runtime.tasks import in_order

    shards = Shards(str(Path(folder, "shards")), partial(in_order, cpus=1), one_machine=True)
    with private_ray(tasks):
        before = dict(in_order(_worker_cpu, [3.0] * tasks, cpus=1))  # their processes start
        run = _timed(data, output, shards)
        after = dict(in_order(_worker_cpu, [1.0] * tasks, cpus=1))
    spent = sum(seconds - before.get(process, 0.0) for process, seconds in after.items())
    return replace(run, cpu_seconds=run.cpu_seconds + spent)


def _timed(data: Data, output: Path, shards: Shards | None) -> PreparationRun:
    freeze_imports()  # as a command does (`workflows.stage_runner`)
    before, started, cpu = _peak_memory(), time.perf_counter(), time.process_time()
    prepare(data, output, lambda _: None, shards)
    seconds = time.perf_counter() - started
    return PreparationRun(seconds, time.process_time() - cpu, _peak_memory() - before, digest_of(inventory(output)))


def _worker_cpu(pause: float) -> tuple[int, float]:
    """Wait, so that every worker gets one of these tasks, and return the process and its CPU seconds."""
    time.sleep(pause)
    return os.getpid(), time.process_time()


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
