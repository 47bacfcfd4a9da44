"""Benchmark: how fast the samplers are, in one race with the published sampler and the autoregressive one.

python -m workflows.benchmark sample [--vocabularies 28 50257 --steps 32 --folder FOLDER ...]
"""

import math
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from cluster.machine import commit, machine, packages
from edlm.config import config, dump, from_flags
from workflows.benchmarking.sampling import Measured, Sampling, Size, measure
from workflows.reporting.document import Bullet, Bullets, Document, Heading, Paragraph, Table, Verbatim
from workflows.reporting.markdown_page import markdown_page

MIB = 2**20
NONE = "–"

METHOD = (
    "All samplers of a size run one after the other in every round, after a round that does not count; seconds are "
    "medians over the rounds, in brackets the least and the most. Ratios are of the same round. The networks are "
    "untrained: no two candidates are equal, the dearest case. Naive is the published sampler as its description "
    "reads, with its mistakes mended; its steps cost alike, so that one within the window and one outside stand for "
    "all. Whole drafts are weighed by the paper's NCE network where t is from 0.8 to 1, light heads in every step. "
    "Kept a call are the tokens of a draft that a pass of the head kept; how many depends on how near the laws are, "
    "and of these networks they refuse about one in three. "
    "Memory is the most that tensors took at once beyond the weights (of naive: in a step)."
)


@config
class SampleBenchmark(Sampling):
    """Flags of `sample`."""

    folder: str | None = None
    """Where `sample.md` goes; None prints it alone."""


def sample(wanted: SampleBenchmark) -> Document:
    """The race, as a document."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that measures memory talks on standard error
    rows = list(measure(wanted, device, lambda line: print(f"[benchmark] {line}", flush=True)))
    facts = {**machine(), **packages(), "threads": str(torch.get_num_threads()), "commit": str(commit() or NONE)}
    return Document(
        "How fast the samplers are",
        [
            Paragraph(METHOD),
            *(_table(size, rows) for size in dict.fromkeys(row.size for row in rows)),
            Heading("Settings and machine"),
            Bullets([Bullet(name, value) for name, value in facts.items()]),
            Bullets([Bullet("Written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")]),
            Verbatim("Settings", dump(wanted)),
        ],
    )


def _table(size: Size, rows: Sequence[Measured]) -> Table:
    own = [row for row in rows if row.size == size]
    by_name = {row.name: row for row in own}
    cells = []
    for row in own:
        seconds = [value / size.batch for value in (row.times.median, min(row.times.rounds), max(row.times.rounds))]
        plain = by_name.get("plain")
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
            )
        )  # fmt: skip
    columns = (
        "sampler", "seconds a sequence", "tokens a second", "denoiser calls", "energy calls", "kept a call",
        "memory, MiB", "times plain", "times faster than naive",
    )  # fmt: skip
    caption = f"|V| = {size.vocabulary:,}, L = {size.length}, {size.batch} at once, T = {size.steps}"
    return Table(caption, columns, cells)


def _ratio(ratio: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] != "sample":
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    wanted = from_flags(SampleBenchmark, arguments[1:], __doc__ or "")
    text = markdown_page(sample(wanted))
    if wanted.folder is not None:
        folder = Path(wanted.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sample.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
