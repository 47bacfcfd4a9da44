"""Tables of the training benchmark."""

from collections.abc import Sequence

from workflows.benchmarking.interleaved_timing import ratio_text
from workflows.benchmarking.load_tables import NONE
from workflows.benchmarking.training import StepTiming, TrainedSize, TrainingSteps
from workflows.reporting.document import DocumentBlock, Paragraph, Table

MIB = 2**20
METHOD = (
    "All steps of a size run one after the other in every round, after a warm-up round; seconds are medians over the "
    "rounds (in brackets: minimum to maximum). Ratios are within one round. A step is what the training loop does "
    "with one process (`LocalEngine`) or with DeepSpeed workers (ZeRO over gloo, one thread each): loss, gradient, "
    "clipping, AdamW, running average, metrics. Plain is the published step as described "
    "(`edlm/baselines/published_training.py`): the logits of all positions and their log-softmax in float32, torch's "
    "default AdamW, and a loss that is read back in every step. Networks are untrained and in float32 unless "
    "otherwise named; the light heads have not been published, so that they have no plain step."
)
COLUMNS = (
    "MFU is model FLOP per second (`edlm/training/flops.py`: what the loss requires, for plain steps, too) of those of "
    "a product of square matrices in the same precision and round (`product_side`, below). Memory is the peak of "
    "tensors that a step allocates, besides weights and the optimizer's state; of workers, that of the one with the "
    "most. Operations that a host dispatches to a device, and how often it waits for an answer, are counted on the "
    "simulated device (docs/gpu.md), for a step that no log follows."
)


def training_blocks(results: Sequence[StepTiming], settings: TrainingSteps, emulated: bool) -> list[DocumentBlock]:
    """Return the paragraphs and the table of each size; `emulated`: bfloat16 has been left out."""
    sizes = dict.fromkeys(result.size for result in results)
    left_out = [Paragraph("This processor has no instructions for bfloat16, whose steps are left out.")] * emulated
    tables = [_table(size, [result for result in results if result.size == size], settings) for size in sizes]
    return [Paragraph(METHOD), Paragraph(COLUMNS), *left_out, *tables]


def _table(size: TrainedSize, results: Sequence[StepTiming], settings: TrainingSteps) -> Table:
    by_name = {result.name: result for result in results}
    cells = []
    for result in results:
        tokens = result.rows * size.length
        plain = by_name.get(result.plain)
        seconds, costs = result.times, result.costs
        cells.append(
            (
                result.name,
                f"{seconds.median:.3g} ({min(seconds.rounds):.3g} to {max(seconds.rounds):.3g})",
                f"{tokens / seconds.median:,.0f}",
                NONE if result.utilisation is None else f"{result.utilisation:.2f}",
                f"{result.peak_bytes / MIB:,.1f}",
                *((NONE, NONE) if costs is None else (f"{costs.dispatches:,}", str(costs.waits))),
                *((NONE, NONE) if plain is None else _against(result, plain)),
            )
        )
    columns = (
        "step", "seconds", "tokens per second", "MFU", "memory, MiB", "operations", "waits",
        "times faster than plain", "memory of plain",
    )  # fmt: skip
    caption = (
        f"|V| = {size.vocabulary:,}, L = {size.length}, {settings.tokens:,} tokens per step and process, "
        f"{settings.layers} layers of {settings.width}"
    )
    return Table(caption, columns, cells)


def _against(result: StepTiming, plain: StepTiming) -> tuple[str, str]:
    return ratio_text(result.times.times_of(plain.times)), f"{result.peak_bytes / plain.peak_bytes:.2f}"
