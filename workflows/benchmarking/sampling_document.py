"""Tables of the race of samplers."""

import math
from collections.abc import Sequence

from workflows.benchmarking.interleaved_timing import ratio_text
from workflows.benchmarking.load_tables import NONE
from workflows.benchmarking.sampling import RaceResult, Size
from workflows.reporting.document import DocumentBlock, Paragraph, Table

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


def sampling_blocks(rows: Sequence[RaceResult], trained: bool) -> list[DocumentBlock]:
    """Return the paragraphs and the table of each size."""
    sizes = dict.fromkeys(row.size for row in rows)
    return [Paragraph(METHOD), Paragraph(TRAINED if trained else UNTRAINED), *(_table(size, rows) for size in sizes)]


def _table(size: Size, rows: Sequence[RaceResult]) -> Table:
    size_rows = [row for row in rows if row.size == size]
    by_name, judged = {row.name: row for row in size_rows}, any(row.worth for row in size_rows)
    cells = []
    for row in size_rows:
        seconds = [value / size.batch for value in (row.times.median, min(row.times.rounds), max(row.times.rounds))]
        plain, naive = by_name.get(row.plain), by_name.get(row.naive)
        cells.append(
            (
                row.name + (f" ({row.scaled} timed)" if row.scaled else ""),
                f"{seconds[0]:.3g} ({seconds[1]:.3g} to {seconds[2]:.3g})",
                f"{size.length / seconds[0]:,.0f}",
                f"{row.calls[0]:.1f}", f"{row.calls[1]:.1f}",
                NONE if math.isnan(row.calls[2]) else f"{row.calls[2]:.1f}",
                f"{row.peak_bytes / MIB:.1f}",
                ratio_text(plain.times.times_of(row.times)) if plain else NONE,
                ratio_text(row.times.times_of(naive.times)) if naive else NONE,
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
