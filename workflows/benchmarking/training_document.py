"""Tables of the training benchmark."""

from collections.abc import Mapping, Sequence

from workflows.benchmarking.interleaved_timing import ratio_text
from workflows.benchmarking.load_tables import NONE
from workflows.benchmarking.training import StepTiming, TrainedSize, TrainingSteps, in_precision
from workflows.reporting.document import DocumentBlock, Paragraph, Table

MIB = 2**20
METHOD = (
    "All steps of a size run one after the other in every round, after a warm-up round, each after one step of its own "
    "that is not timed, because caches and memory are still those of another; seconds are medians over the "
    "rounds (in brackets: minimum to maximum). Ratios are within one round. A step is what the training loop does "
    "with one process (`LocalEngine`) or with DeepSpeed workers (ZeRO over gloo, one thread each): loss, gradient, "
    "clipping, AdamW, running average, metrics. Plain is the published step as described "
    "(`edlm/baselines/published_training.py`): the logits of all positions and their log-softmax in float32, torch's "
    "default AdamW, and a loss that is read back in every step; in bfloat16 under autocast, as the published training "
    "ran. Networks are untrained and in float32 unless otherwise named; the light heads have not been published, so "
    "that they have no plain step."
)
COLUMNS = (
    "Share of a product: model FLOP per second (`edlm/training/flops.py`: what the loss requires, for plain steps, "
    "too) of those of a product of square matrices in the same precision and round (`product_side`, below). MFU, of "
    "GPUs that are known: the same of the peak by data sheet, as in the metrics of a training "
    "(`edlm/training/device_usage.py`). Memory is the peak of tensors that a step allocates, besides weights and the "
    "optimizer's state; of workers, that of the one with the most. Operations that a host dispatches to a device, and "
    "how often it waits for an answer, are counted on the simulated device (docs/gpu.md), for a step that no log "
    "follows. Faster than plain: than the plain step in float32, and of steps in bfloat16 also than that in bfloat16. "
    "Times one worker: tokens per second of several workers, of those of one."
)


def training_blocks(results: Sequence[StepTiming], settings: TrainingSteps, emulated: bool) -> list[DocumentBlock]:
    """Return the paragraphs and the table of each size; `emulated`: bfloat16 has been left out."""
    sizes = dict.fromkeys(result.size for result in results)
    left_out = [Paragraph("This processor has no instructions for bfloat16, whose steps are left out.")] * emulated
    tables = [_table(size, [result for result in results if result.size == size], settings) for size in sizes]
    return [Paragraph(METHOD), Paragraph(COLUMNS), *left_out, *tables]


def _table(size: TrainedSize, results: Sequence[StepTiming], settings: TrainingSteps) -> Table:
    by_name = {result.name: result for result in results}
    known = any(result.mfu is not None for result in results)
    halved = any(_alike(result, by_name) for result in results)
    cells = []
    for result in results:
        tokens = result.rows * size.length
        plain, alone = by_name.get(result.plain), by_name.get(result.alone)
        seconds, costs = result.times, result.costs
        cells.append(
            (
                result.name,
                f"{seconds.median:.3g} ({min(seconds.rounds):.3g} to {max(seconds.rounds):.3g})",
                f"{tokens / seconds.median:,.0f}",
                _share(result.of_product),
                *([_share(result.mfu)] if known else []),
                f"{result.peak_bytes / MIB:,.1f}",
                *((NONE, NONE) if costs is None else (f"{costs.dispatches:,}", str(costs.waits))),
                *((NONE, NONE) if plain is None else _against(result, plain)),
                *([_times_faster(result, _alike(result, by_name))] if halved else []),
                NONE if alone is None else _throughput(result, alone),
            )
        )
    columns = (
        "step", "seconds", "tokens per second", "share of a product", *(["MFU"] if known else []), "memory, MiB",
        "operations", "waits", "times faster than plain", "memory of plain",
        *(["times faster than plain, bfloat16"] if halved else []), "times one worker",
    )  # fmt: skip
    execution = ", compiled" * settings.compiled + ", activation checkpointing" * settings.activation_checkpointing
    caption = (
        f"|V| = {size.vocabulary:,}, L = {size.length}, {settings.tokens:,} tokens per step and process, "
        f"{settings.layers} layers of {settings.width}, {settings.heads} heads{execution}"
    )
    return Table(caption, columns, cells)


def _share(share: float | None) -> str:
    return NONE if share is None else f"{share:.2f}"


def _alike(result: StepTiming, by_name: Mapping[str, StepTiming]) -> StepTiming | None:
    """Return the plain step in bfloat16 of a step in bfloat16."""
    name = in_precision(result.plain, result.precision)
    return by_name.get(name) if result.plain and name != result.plain else None


def _against(result: StepTiming, plain: StepTiming) -> tuple[str, str]:
    return _times_faster(result, plain), f"{result.peak_bytes / plain.peak_bytes:.2f}"


def _times_faster(result: StepTiming, plain: StepTiming | None) -> str:
    return NONE if plain is None else ratio_text(result.times.times_of(plain.times))


def _throughput(result: StepTiming, alone: StepTiming) -> str:
    median, least, most = (ratio * result.rows / alone.rows for ratio in result.times.times_of(alone.times))
    return ratio_text((median, least, most))
