"""The samplers of a benchmark: the fast ones, the naive ones, and the autoregressive one, at one size.

The networks are untrained and of the sizes that are asked for: what a step costs does not depend on what was learned,
and from a denoiser that knows nothing no two candidates are equal, which is the dearest case.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edlm.abstract_energy import AbstractEnergy
from edlm.autoregressive import AutoregressiveModel
from edlm.config import Positive, config
from edlm.denoiser import Denoiser
from edlm.energy import Bidirectional, Conditional, Step
from edlm.execution import AS_TRAINED, Execution
from edlm.memory import peak_bytes
from edlm.naive import NaiveSampler
from edlm.sampler import EXACT, Sampler
from edlm.schedule import LogLinear
from edlm.step import StepResult
from edlm.transformer import Trunk
from workflows.benchmarking.race import Contestant, Lap, Times, race

WINDOW = (0.8, 1.0)  # in which the paper's generator weighs
BLOCK = 8
HEADS = 4
HALF = 0.5  # of the canvas is masked where one step stands for others outside the window
SCALE = 0.02  # of the untrained readout, which would else give every token exactly the same probability
CORRECTION = 0.2  # of the conditional head's, which would else keep every draft: so it refuses about one token in three


@config
class Sampling:
    """What is timed: every combination of the lists."""

    vocabularies: tuple[Positive, ...] = (28, 50_257)
    lengths: tuple[Positive, ...] = (256,)
    batches: tuple[Positive, ...] = (1,)
    steps: tuple[Positive, ...] = (32,)
    candidates: tuple[Positive, ...] = (1, 2, 8)
    """k; 1 is plain diffusion."""
    width: Positive = 256
    layers: Positive = 4
    head_width: Positive = 128
    """Of the light heads of step and conditional energies, which have one layer."""
    execution: Execution = AS_TRAINED
    """Of all networks alike."""
    rounds: Positive = 3
    seed: int = 0


@dataclass(frozen=True)
class Size:
    """One combination."""

    vocabulary: int
    length: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Runner:
    """A sampler at one size."""

    name: str
    candidates: int
    contestant: Contestant
    scaled: str
    """What was timed, where it was not whole samples; empty where it was."""
    calls: Callable[[], tuple[float, float, float]]
    """(denoiser, energy) network passes of a sequence, and the draft's tokens that one of the latter kept, or nan."""


@dataclass(frozen=True)
class Measured:
    """What one sampler took at one size."""

    size: Size
    name: str
    candidates: int
    scaled: str
    times: Times
    calls: tuple[float, float, float]
    peak_bytes: int
    naive: str
    """The name of the naive sampler of the same law; empty where there is none."""


@dataclass(frozen=True)
class Networks:
    """Everything that takes part at one vocabulary."""

    denoiser: Denoiser
    autoregressive: AutoregressiveModel
    whole: AbstractEnergy
    step: AbstractEnergy
    conditional: AbstractEnergy


def networks(wanted: Sampling, vocabulary: int, device: torch.device) -> Networks:
    """Untrained ones, the same for the same seed."""
    torch.manual_seed(wanted.seed)
    trunk = Trunk(width=wanted.width, layers=wanted.layers, heads=HEADS)
    denoiser, autoregressive = Denoiser(trunk, vocabulary), AutoregressiveModel(trunk, vocabulary)
    for readout in (denoiser.readout, autoregressive.readout):
        nn.init.normal_(readout.weight, std=SCALE)
    width = wanted.head_width
    step = Step(block=BLOCK, width=width, layers=1, heads=HEADS).build(denoiser)
    conditional = Conditional(width=width, layers=1, heads=HEADS).build(denoiser)
    nn.init.normal_(conditional.correction.weight, std=CORRECTION)
    found = Networks(denoiser, autoregressive, Bidirectional().build(denoiser), step, conditional)
    for network in (found.denoiser, found.autoregressive, found.whole, found.step, found.conditional):
        wanted.execution.prepare(network.to(device).eval())
    return found


def measure(wanted: Sampling, device: torch.device, say: Callable[[str], None]) -> Iterator[Measured]:
    """Every sampler at every size, each size a race of its own."""
    for vocabulary in wanted.vocabularies:
        of = networks(wanted, vocabulary, device)
        for length in wanted.lengths:
            for batch in wanted.batches:
                for steps in wanted.steps:
                    size = Size(vocabulary, length, batch, steps)
                    say(f"|V| = {vocabulary:,}, L = {length}, {batch} at once, T = {steps}")
                    yield from _measure(wanted, of, size, device)


def _measure(wanted: Sampling, of: Networks, size: Size, device: torch.device) -> Iterator[Measured]:
    runners = list(_runners(wanted, of, size, device))
    found = race([one.contestant for one in runners], wanted.rounds, device)
    names = {one.name for one in runners}
    for one in runners:
        naive = f"naive {one.name}"
        peak = max(peak_bytes(lap.run, device) for lap in one.contestant.laps)
        yield Measured(
            size, one.name, one.candidates, one.scaled, found[one.name], one.calls(), peak,
            naive if naive in names else "",
        )  # fmt: skip


def _runners(wanted: Sampling, of: Networks, size: Size, device: torch.device) -> Iterator[Runner]:
    keys = torch.arange(size.batch, device=device) + wanted.seed

    def write() -> None:
        of.autoregressive.draw(keys, size.length)

    name = "autoregressive"
    yield Runner(name, 1, Contestant(name, [Lap(write)]), "", lambda: (0.0, float(size.length), math.nan))
    for k in wanted.candidates:
        if k == 1:
            yield from _both("plain", Sampler(steps=size.steps), of, None, size, keys)
            continue
        whole = Sampler(steps=size.steps, candidates=k, window=WINDOW)
        yield from _both(f"whole drafts, k = {k}", whole, of, of.whole, size, keys)
        every = Sampler(steps=size.steps, candidates=k)
        yield _fast(f"step, blocks of {BLOCK}, k = {k}", every, of, of.step, size, keys)
        yield _fast(f"conditional, k = {k}", every, of, of.conditional, size, keys)
    exact = Sampler(steps=size.steps, candidates=EXACT)
    yield _fast("conditional, exact", exact, of, of.conditional, size, keys)
    yield _fast("conditional, verifying drafts", replace(exact, speculative=True), of, of.conditional, size, keys)


def _both(
    name: str, sampler: Sampler, of: Networks, energy: AbstractEnergy | None, size: Size, keys: Tensor
) -> Iterator[Runner]:
    yield _fast(name, sampler, of, energy, size, keys)
    yield _naive(f"naive {name}", sampler, of, energy, size, keys)


def _fast(name: str, sampler: Sampler, of: Networks, energy: AbstractEnergy | None, size: Size, keys) -> Runner:
    canvas = torch.full((size.batch, size.length), of.denoiser.mask, device=keys.device)

    def run(on_step: Callable[[StepResult], None] | None = None) -> None:
        sampler.sample(canvas, of.denoiser, energy, LogLinear(), keys, on_step)

    def calls() -> tuple[float, float, float]:
        steps: list[StepResult] = []
        run(steps.append)
        denoised, weighed, accepted = (
            torch.stack([getattr(step, which) for step in steps]).sum().item() / size.batch
            for which in ("denoiser_calls", "energy_calls", "accepted")
        )
        return denoised, weighed, accepted / weighed if sampler.speculative else math.nan

    return Runner(name, sampler.candidates, Contestant(name, [Lap(run)]), "", calls)


def _naive(
    name: str, sampler: Sampler, of: Networks, energy: AbstractEnergy | None, size: Size, keys: Tensor
) -> Runner:
    """One step within the window and one outside stand for all: a naive step costs the same whatever is masked."""
    generator = torch.Generator(keys.device).manual_seed(0)
    naive = NaiveSampler(sampler)
    grid = torch.arange(1, size.steps + 1, dtype=torch.float64) / size.steps
    weighing = sampler.in_window(grid) & (sampler.candidates > 1)
    half = torch.full((size.batch, size.length), of.denoiser.mask, device=keys.device)
    half[:, : int(HALF * size.length)] = 0

    def lap(i: int, times: int) -> Lap:
        def run() -> None:
            naive.step(half, i, of.denoiser, energy, LogLinear(), generator)

        return Lap(run, times)

    kinds = [(torch.nonzero(which)[:, 0] + 1).tolist() for which in (weighing, ~weighing)]
    laps = [lap(steps[len(steps) // 2], len(steps)) for steps in kinds if steps]
    calls = float(size.steps), float(sampler.candidates * int(weighing.sum()))
    scaled = f"{len(laps)} of {size.steps} steps"
    return Runner(name, sampler.candidates, Contestant(name, laps), scaled, lambda: (*calls, math.nan))
