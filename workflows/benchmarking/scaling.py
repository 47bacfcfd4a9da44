"""Figures of docs/scaling.md: how time, memory and cost grow, by the formulas of the planner.

python -m workflows.benchmarking.scaling    # seconds; networks have shapes and no weights
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.planning.devices import DEVICES, GB
from edlm.planning.training_memory import Sharding
from edlm.planning.training_plan import HOUR, Assumptions, TrainingPlan
from edlm.planning.training_work import training_work, transformer_kept
from edlm.schedule import LogLinear
from edlm.training.flops import head_flop, transformer_flop
from edlm.training.objectives import Denoising
from edlm.training.settings import Training
from workflows.reporting.figures.style import ACCENTS, INK, SMALL, TEXT, finish, sheet

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
DOTS_PER_INCH = 110
HEIGHT = 3.4  # inches
GPT2, LENGTH = 50_257, 1024
LADDER = ((256, 4), (512, 8), (768, 12), (1024, 24), (1536, 24), (2048, 24), (2560, 32), (4096, 32))
"""Width and layers of the sizes, from 29 million to 6.9e9 parameters; a head has 64 channels, or 128 from 2048 on."""
SIZES = {"85 million": (768, 12), "1.2e9": (2048, 24), "6.4e9": (4096, 32)}
"""Some of them by the parameters in their layers."""
SMALLEST = SIZES["85 million"]
DEVICE, COUNT = DEVICES["H100"], 64
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, for autoregressive models
ROWS = 512
TERABYTE_TOKENS = 2.5e11  # 1 TB of text, at four characters each


def network(size: tuple[int, int], vocabulary: int = GPT2) -> Denoiser:
    """Return a denoiser of this width and depth without weights."""
    width, layers = size
    with torch.device("meta"):
        return Denoiser(
            TransformerConfig(width=width, layers=layers, heads=width // (64 if width < 2048 else 128)), vocabulary
        )


def plan(
    size: tuple[int, int], stage: int, count: int = COUNT, length: int = LENGTH, vocabulary: int = GPT2
) -> TrainingPlan:
    """Return the plan of a training on the tokens of `ROWS` rows of 1,024 per step."""
    batch = max(count, ROWS * LENGTH // length)
    rows = max(1, min(batch // count, 8 * LENGTH // length))
    training = Training(steps=1, batch=batch, accumulation=batch // count // rows, precision="bfloat16", ema=0.9999)
    work = training_work(Denoising(network(size, vocabulary), LogLinear(), seed=0), batch, length)
    assert work is not None
    return TrainingPlan(work, training, length, DEVICE, count, Sharding(stage), Assumptions())


def figures() -> dict[str, Figure]:
    """Return the figures by name."""
    return {"scaling-parameters": _by_parameters(), "scaling-length": _by_length(), "scaling-devices": _by_devices()}


def _by_parameters() -> Figure:
    figure = sheet(f"Parameters: {COUNT} H100, L = {LENGTH:,}, |V| = {GPT2:,}, bfloat16", HEIGHT)
    flop, memory, hours = figure.subplots(1, 3)
    plans = {stage: [plan(size, stage) for size in LADDER] for stage in (1, 2, 3)}
    parameters = [one.work.trained for one in plans[1]]
    per_token = [one.work.flop / (one.training.batch * one.length) for one in plans[1]]
    _lines(flop, parameters, {"a denoiser's step": per_token, "6 x parameters": [6 * count for count in parameters]})
    finish(flop, "parameters", "FLOP per token")
    by_stage = {f"ZeRO-{stage}": [one.memory.total / GB for one in row] for stage, row in plans.items()}
    _lines(memory, parameters, by_stage)
    memory.axhline(DEVICE.memory_bytes / GB, color=INK, linestyle=":", linewidth=1)
    finish(memory, "parameters", "GB per device")
    days = {
        f"{TOKENS_PER_PARAMETER} tokens per parameter": [
            TOKENS_PER_PARAMETER * one.work.trained / one.tokens_per_second / HOUR * COUNT for one in plans[2]
        ],
        f"{TERABYTE_TOKENS:.2g} tokens (1 TB of text)": [
            TERABYTE_TOKENS / one.tokens_per_second / HOUR * COUNT for one in plans[2]
        ],
    }
    _lines(hours, parameters, days)
    finish(hours, "parameters", "device-hours")
    return figure


def _by_length() -> Figure:
    figure = sheet("Length, vocabulary, steps and candidates, by the parameters in the layers", HEIGHT)
    length_axes, vocabulary_axes, steps_axes = figure.subplots(1, 3)
    lengths = [2**power for power in range(7, 16)]
    kept = {
        name: [transformer_kept(network(size).config, length) * 2 / GB for length in lengths]
        for name, size in SIZES.items()
    }
    _lines(length_axes, lengths, kept)
    finish(length_axes, "L", "activations, GB per row")
    vocabularies = [2**power for power in range(8, 19)]
    shares = {
        name: [
            head_flop(size[0], vocabulary, LENGTH // 2)
            / (head_flop(size[0], vocabulary, LENGTH // 2) + transformer_flop(network(size).config, LENGTH, LENGTH))
            for vocabulary in vocabularies
        ]
        for name, size in SIZES.items()
    }
    _lines(vocabulary_axes, vocabularies, shares)
    finish(vocabulary_axes, "|V|", "share of the logits in the FLOP")
    vocabulary_axes.set_yscale("linear")
    steps = [2**power for power in range(11)]
    _lines(steps_axes, steps, _generation(steps))
    finish(steps_axes, "T", "TFLOP per text (85 million)")
    return figure


def _generation(steps: Sequence[int]) -> dict[str, list[float]]:
    """Return the TFLOP of a text by the kind of energy: of all L positions together, each is unmasked once."""
    config, head = network(SMALLEST).config, TransformerConfig(width=384, layers=2, heads=6)
    denoise = transformer_flop(config, LENGTH, LENGTH)
    logits = head_flop(config.width, GPT2, LENGTH)
    light = transformer_flop(head, LENGTH, 16) + 2 * config.width * head.width * LENGTH
    plain = [(step * denoise + logits) / 1e12 for step in steps]
    return {
        "plain diffusion": plain,
        "step energy, k = 8": [value + 8 * light / 1e12 for value in plain],
        "step energy, k = 64": [value + 64 * light / 1e12 for value in plain],
        "whole sequences, k = 8": [
            value + step * (8 * denoise + logits) / 1e12 for value, step in zip(plain, steps, strict=True)
        ],
    }


def _by_devices() -> Figure:
    figure = sheet(f"H100, {ROWS} rows of {LENGTH:,} tokens per step, by the parameters in the layers", HEIGHT)
    speed, share, checkpoint = figure.subplots(1, 3)
    counts = [2**power for power in range(10)]
    plans = {
        f"{name}, ZeRO-{stage}": [plan(size, stage, count) for count in counts]
        for name, size in SIZES.items()
        for stage in (1, 3)
    }
    _lines(speed, counts, {name: [one.tokens_per_second for one in row] for name, row in plans.items()})
    finish(speed, "devices", "tokens per second")
    _lines(share, counts, {name: [one.mfu for one in row] for name, row in plans.items()})
    share.set(yscale="linear", ylim=(0, 0.65))
    speed.get_legend().remove()  # pyright: ignore[reportOptionalMemberAccess]
    finish(share, "devices", "MFU, collectives not hidden")
    stops = {name: [one.checkpoint_stop_seconds for one in plans[f"{name}, ZeRO-1"]] for name in SIZES}
    _lines(checkpoint, counts, stops)
    finish(checkpoint, "devices", "a checkpoint stops training, s")
    return figure


def _lines(axes: Axes, x: Sequence[float], lines: dict[str, list[float]]) -> None:
    """Draw lines on logarithmic axes, with a legend."""
    for (name, y), colour in zip(lines.items(), ACCENTS, strict=False):
        assert all(math.isfinite(value) for value in y)
        axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.4, label=name)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, title_fontsize=TEXT)


def costs() -> Iterator[str]:
    """Yield a line per size: the device-hours of a terabyte of text, and those of the passes alone."""
    for size in LADDER:
        one = plan(size, 2)
        hours = TERABYTE_TOKENS / one.tokens_per_second / HOUR * COUNT
        yield (
            f"{one.work.trained:.2g} parameters, {TERABYTE_TOKENS:.2g} tokens: {hours:,.0f} device-hours at an MFU of "
            f"{one.mfu:.2f} with the collectives; {hours * one.compute_seconds / one.step_seconds:,.0f} if they were "
            f"hidden, at {one.assumptions.mfu:.2f}"
        )


def main() -> None:
    """Draw the figures beside the page, and print the costs that it names."""
    for name, figure in figures().items():
        figure.savefig(PAGE.with_name(f"{name}.png"), dpi=DOTS_PER_INCH)
    for line in costs():
        print(line)


if __name__ == "__main__":
    main()
