"""Curves of docs/scaling.md: time, memory and cost of training and generation, by the formulas of the planner."""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from edlm.energies.configuration import AbstractEnergyConfig
from edlm.energies.step import StepEnergy, StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import AbstractEnergy, Model
from edlm.models.denoiser import Denoiser
from edlm.models.readout import CHUNK
from edlm.models.transformer import TransformerConfig
from edlm.planning.devices import DEVICES, GB
from edlm.planning.training_memory import Sharding
from edlm.planning.training_plan import HOUR, Assumptions, TrainingPlan
from edlm.planning.training_work import training_work
from edlm.sampling.candidates import TOKENS_AT_ONCE
from edlm.sampling.memory_footprint import promised_bytes
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import energy_objective
from edlm.training.flops import head_flop, transformer_flop
from edlm.training.objectives import Denoising
from edlm.training.settings import Training

GPT2, LENGTH = 50_257, 1024
LADDER = ((256, 4), (512, 8), (768, 12), (1024, 24), (1536, 24), (2048, 24), (2560, 32), (4096, 32))
"""Width and layers of the sizes, from 29 million to 6.9e9 parameters; a head has 64 channels, or 128 from 2048 on."""
SIZES = {"85 million": (768, 12), "1.2e9": (2048, 24), "6.4e9": (4096, 32)}
"""Some of them by the parameters in their layers."""
DEVICE, COUNT = DEVICES["H100"], 64
ROWS, MICRO_ROWS = 512, 8  # of `LENGTH` tokens: per step, and per device and micro-step
TERABYTE_TOKENS = 2.5e11  # 1 TB of text, at four characters each
TEXTS, STEPS, CANDIDATES = 64, 32, 8  # of a generation: texts at once, T and k
BILLION = 10**9
BFLOAT16 = 2  # bytes

LENGTHS = [2**power for power in range(7, 16)]
VOCABULARIES = [2**power for power in range(8, 19)]
NEGATIVES = [2**power for power in range(7)]
MORE_THAN_ONE = NEGATIVES[1:]  # candidates: one is plain diffusion
GRIDS = [2**power for power in range(11)]
COUNTS = [2**power for power in range(10)]

STAGES = {stage: f"denoiser, ZeRO-{stage}" for stage in (1, 2, 3)}
STAGE = 2  # of ZeRO, where it is not the stages that differ
PLAIN, STEP, WHOLE = "plain diffusion", "step energy", "energy of whole sequences"
ENERGIES: dict[str, AbstractEnergyConfig] = {
    STEP: StepEnergyConfig(block=16, width=384, layers=2, heads=6),
    WHOLE: BidirectionalEnergyConfig(),
}
"""Those of the experiment `owt`."""


@dataclass(frozen=True)
class Needs:
    """What a training or a generation takes."""

    time: float
    """Hours of a training on a terabyte of text, seconds of a generation of `TEXTS` texts."""
    memory_gb: float
    """Per device."""
    device_hours: float
    """Of a training on a terabyte of text, of a generation of 10^9 tokens."""


@dataclass(frozen=True)
class GrowthCurve:
    """What one kind of training or generation takes, by the quantity that grows."""

    kind: str
    size: str | None
    """Of `SIZES`; None: it is the size that grows."""
    points: dict[int, Needs]


@functools.cache
def networks(
    size: tuple[int, int], vocabulary: int = GPT2, kind: str | None = None
) -> tuple[Denoiser, AbstractEnergy | None]:
    """Return a denoiser of this width and depth and an energy of this kind on it, without weights.

    A denoiser with an energy is another than one without: an objective that trains the energy freezes it.
    """
    width, layers = size
    with torch.device("meta"):
        denoiser = Denoiser(
            TransformerConfig(width=width, layers=layers, heads=width // (64 if width < 2048 else 128)), vocabulary
        )
        return denoiser, None if kind is None else ENERGIES[kind].build(denoiser)


def plan(
    size: tuple[int, int],
    stage: int = STAGE,
    count: int = COUNT,
    length: int = LENGTH,
    vocabulary: int = GPT2,
    kind: str | None = None,
    negatives: int = 1,
) -> TrainingPlan:
    """Return the plan of a training on the tokens of `ROWS` rows of 1,024 per step, or on a row per device if more.

    `kind`: that of the energy that is trained; None: the denoiser is trained.
    """
    batch = max(count, ROWS * LENGTH // length)
    rows = max(1, min(batch // count, MICRO_ROWS * LENGTH // length))
    training = Training(steps=1, batch=batch, accumulation=batch // count // rows, precision="bfloat16", ema=0.9999)
    denoiser, energy = networks(size, vocabulary, kind)
    if energy is None:
        objective = Denoising(denoiser, LogLinear(), seed=0)
    else:
        objective = energy_objective(Model(denoiser, energy, LogLinear()), negatives, "ranking", seed=0)
    work = training_work(objective, batch, length)
    assert work is not None
    return TrainingPlan(work, training, length, DEVICE, count, Sharding(stage), Assumptions())


def trained(one: TrainingPlan) -> Needs:
    """Return what a training takes."""
    hours = TERABYTE_TOKENS / one.tokens_per_second / HOUR
    return Needs(hours, one.memory.total / GB, hours * one.count)


def generated(
    size: tuple[int, int],
    kind: str | None,
    length: int = LENGTH,
    vocabulary: int = GPT2,
    candidates: int = CANDIDATES,
    steps: int = STEPS,
) -> Needs:
    """Return what a generation takes at most, on one device, with weights in bfloat16 and the rest in float32.

    Each of T steps is a pass of the denoiser. A step energy scores k candidates of the positions that the step unmasks.
    An energy of whole sequences scores k texts in every step, drawn at all positions that are still masked. `kind`:
    that of the energy; None: plain diffusion.
    """
    denoiser, energy = networks(size, vocabulary, kind)
    width, denoise = denoiser.width, transformer_flop(denoiser.config, length, length)
    flop = steps * denoise + head_flop(width, vocabulary, length)
    match energy:
        case None:
            candidates = 1
        case StepEnergy(block=int() as block):
            head = TransformerConfig(width=energy.features.out_features, layers=len(energy.layers))
            flop += candidates * transformer_flop(head, length, block) + 2 * width * head.width * length
        case _:
            still_masked = length * (steps + 1) // 2  # in all steps together, under the log-linear schedule
            flop += steps * candidates * denoise + head_flop(width, vocabulary, still_masked - length)
    seconds = TEXTS * flop / (DEVICE.bfloat16_flops * Assumptions().mfu)
    weights = BFLOAT16 * (_parameters(denoiser) + (0 if energy is None else _parameters(energy)))
    held = promised_bytes(TEXTS, length, vocabulary, candidates, width, TOKENS_AT_ONCE, CHUNK)
    return Needs(seconds, (weights + held) / GB, seconds / HOUR * BILLION / (TEXTS * length))


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def training_curves() -> dict[str, list[GrowthCurve]]:
    """Return what a training on a terabyte of text takes, by the quantity that grows."""
    denoiser = STAGES[STAGE]
    by_stage = {name: [plan(size, stage) for size in LADDER] for stage, name in STAGES.items()}
    return {
        "parameters": [
            GrowthCurve(name, None, {one.work.trained: trained(one) for one in plans})
            for name, plans in by_stage.items()
        ],
        "L": [
            GrowthCurve(denoiser, name, {length: trained(plan(size, length=length)) for length in LENGTHS})
            for name, size in SIZES.items()
        ],
        "|V|": [
            GrowthCurve(denoiser, name, {many: trained(plan(size, vocabulary=many)) for many in VOCABULARIES})
            for name, size in SIZES.items()
        ],
        "K, negatives": [
            GrowthCurve(kind, name, {many: trained(plan(size, kind=kind, negatives=many)) for many in NEGATIVES})
            for kind in ENERGIES
            for name, size in SIZES.items()
        ],
        "devices": [
            GrowthCurve(STAGES[stage], name, {count: trained(plan(size, stage, count)) for count in COUNTS})
            for stage in (STAGE, 3)
            for name, size in SIZES.items()
        ],
    }


def generation_curves() -> dict[str, list[GrowthCurve]]:
    """Return what a generation takes, by the quantity that grows."""
    kinds = {PLAIN: None} | {kind: kind for kind in ENERGIES}
    return {
        "parameters": [
            GrowthCurve(label, None, {_parameters(networks(size)[0]): generated(size, kind) for size in LADDER})
            for label, kind in kinds.items()
        ],
        "L": [
            GrowthCurve(kind, name, {length: generated(size, kind, length=length) for length in LENGTHS})
            for kind in ENERGIES
            for name, size in SIZES.items()
        ],
        "|V|": [
            GrowthCurve(kind, name, {many: generated(size, kind, vocabulary=many) for many in VOCABULARIES})
            for kind in ENERGIES
            for name, size in SIZES.items()
        ],
        "k, candidates": [
            GrowthCurve(kind, name, {many: generated(size, kind, candidates=many) for many in MORE_THAN_ONE})
            for kind in ENERGIES
            for name, size in SIZES.items()
        ],
        "T, steps": [
            GrowthCurve(label, name, {steps: generated(size, kind, steps=steps) for steps in GRIDS})
            for label, kind in kinds.items()
            for name, size in SIZES.items()
        ],
    }
