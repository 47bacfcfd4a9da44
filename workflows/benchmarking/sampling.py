"""The samplers of a benchmark: the fast ones, the naive ones, and the autoregressive one, at one size.

Untrained networks are of the sizes that are asked for: what a step costs does not depend on what was learned, and from
a denoiser that knows nothing no two candidates are equal, which is the dearest case. Of trained ones it is told, too,
what is won for the seconds.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edlm.baselines.naive_sampler import NaiveSampler
from edlm.config import Positive, config, load
from edlm.energies.kinds import Bidirectional, Conditional, Step
from edlm.interfaces import AbstractEnergy, NormalisedEnergy
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.execution import AS_TRAINED, Execution
from edlm.models.transformer import TransformerConfig
from edlm.sampling.memory import peak_bytes
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.state import StepResult
from edlm.schedule import AbstractSchedule, LogLinear
from workflows.benchmarking.race import Lap, RacedSampler, Times, race
from workflows.benchmarking.trained import AUTOREGRESSIVE, Trained, Worth, worth
from workflows.evaluation.measurements.measurement import PLAIN, autoregressive, models

WINDOW = (0.8, 1.0)  # in which the paper's generator weighs
BLOCK = 8
STEP = f"step, blocks of {BLOCK}"
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
    """Of a second set of networks, whose samplers race beside those of the first; as it is, there is none. The first
    and the naive samplers compute in float32, nothing compiled, as the published ones."""
    models: str | None = None
    """A YAML file that says where trained networks are (docs/benchmarks/README.md): they race at their own |V| and L,
    and the table has their bounds and the quality of their texts. None: untrained ones."""
    rounds: Positive = 3
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("vocabularies", "lengths", "width", "layers", "head_width")
        given = [name for name in sizes if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if self.models is not None and given:
            raise ValueError(f"{', '.join(given)}: of untrained networks; those that `models` names have their own")


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
    contestant: RacedSampler
    scaled: str
    """What was timed, where it was not whole samples; empty where it was."""
    calls: Callable[[], tuple[float, float, float]]
    """(denoiser, energy) network passes of a sequence, and the draft's tokens that one of the latter kept, or nan."""
    law: tuple[str, Sampler] | None = None
    """Name of the energy, and the sampler, whose texts it writes; None where another of the same law does it, too."""
    naive: str = ""
    """The naive sampler of the same law."""
    plain: str = PLAIN


@dataclass(frozen=True)
class RaceResult:
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
    plain: str
    """The name of plain diffusion by the same networks."""
    worth: Worth | None
    """Of trained networks."""


@dataclass(frozen=True)
class Networks:
    """Everything that takes part at one vocabulary."""

    denoiser: Denoiser
    autoregressive: AutoregressiveModel
    energies: Mapping[str, AbstractEnergy]
    schedule: AbstractSchedule


def untrained(wanted: Sampling, vocabulary: int, device: torch.device) -> Networks:
    """Networks of the sizes that are asked for, the same for the same seed."""
    torch.manual_seed(wanted.seed)
    trunk = TransformerConfig(width=wanted.width, layers=wanted.layers, heads=HEADS)
    denoiser, autoregressive = Denoiser(trunk, vocabulary), AutoregressiveModel(trunk, vocabulary)
    for readout in (denoiser.readout, autoregressive.readout):
        nn.init.normal_(readout.weight, std=SCALE)
    width = wanted.head_width
    step = Step(block=BLOCK, width=width, layers=1, heads=HEADS).build(denoiser)
    conditional = Conditional(width=width, layers=1, heads=HEADS).build(denoiser)
    nn.init.normal_(conditional.correction.weight, std=CORRECTION)
    whole = Bidirectional().build(denoiser)
    energies = {"whole drafts": whole, STEP: step, "conditional": conditional}
    return prepared(Networks(denoiser, autoregressive, energies, LogLinear()), AS_TRAINED, device)


def opened(trained: Trained, device: torch.device) -> tuple[Networks, int]:
    """The trained networks, and how long their texts are."""
    subject = trained.subject()
    denoiser, _ = models(subject, PLAIN)
    energies = {}
    for name in trained.energies:
        _, energy = models(subject, name)
        assert isinstance(energy, AbstractEnergy), name
        energies[name] = energy
    found = Networks(denoiser.network, autoregressive(trained.autoregressive), energies, denoiser.schedule)
    return prepared(found, AS_TRAINED, device), denoiser.length


def prepared(networks: Networks, execution: Execution, device: torch.device) -> Networks:
    """Copies that compute as is asked for."""
    found = copy.deepcopy(networks)
    for network in (found.denoiser, found.autoregressive, *found.energies.values()):
        execution.prepare(network.to(device).eval())
    return found


def measure(wanted: Sampling, device: torch.device, say: Callable[[str], None]) -> Iterator[RaceResult]:
    """Every sampler at every size, each size a race of its own."""
    if wanted.models is not None:
        trained = load(Trained, wanted.models)
        of, length = opened(trained, device)
        yield from _sizes(wanted, of, [length], trained, device, say)
        return
    for vocabulary in wanted.vocabularies:
        yield from _sizes(wanted, untrained(wanted, vocabulary, device), wanted.lengths, None, device, say)


def _sizes(wanted: Sampling, of: Networks, lengths, trained: Trained | None, device, say) -> Iterator[RaceResult]:
    vocabulary, sets = of.denoiser.vocabulary, {"": of}
    if wanted.execution != AS_TRAINED:
        sets[f", {wanted.execution.name}"] = prepared(of, wanted.execution, device)
    for length in lengths:
        for batch in wanted.batches:
            for steps in wanted.steps:
                size = Size(vocabulary, length, batch, steps)
                say(f"|V| = {vocabulary:,}, L = {length}, {batch} at once, T = {steps}")
                yield from _measure(wanted, sets, size, trained, device, say)


def _measure(
    wanted: Sampling, sets: Mapping[str, Networks], size: Size, trained: Trained | None, device: torch.device, say
) -> Iterator[RaceResult]:
    runners = list(_runners(wanted, sets, size, device))
    found = race([one.contestant for one in runners], wanted.rounds, device)
    for one in runners:
        peak = max(peak_bytes(lap.run, device) for lap in one.contestant.laps)
        found_worth = None
        if trained is not None and one.law is not None:
            say(f"what {one.name} writes")
            found_worth = worth(trained, *one.law)
        yield RaceResult(
            size, one.name, one.candidates, one.scaled, found[one.name], one.calls(), peak, one.naive, one.plain,
            found_worth,
        )  # fmt: skip


def _runners(wanted: Sampling, sets: Mapping[str, Networks], size: Size, device: torch.device) -> Iterator[Runner]:
    """`sets` are networks by what is added to the names of their samplers; those of the naive ones come first."""
    keys = torch.arange(size.batch, device=device) + wanted.seed
    for added, of in sets.items():
        yield replace(_autoregressive(AUTOREGRESSIVE + added, of, size, keys), plain=PLAIN + added)
    every, first = Sampler(steps=size.steps), next(iter(sets.values()))

    def fast(name: str, sampler: Sampler, energy: str, naive: str = "") -> Iterator[Runner]:
        for added, of in sets.items():
            one = _fast(name + added, sampler, of, energy, size, keys)
            yield replace(one, naive=naive, plain=PLAIN + added, law=None if added or sampler.speculative else one.law)

    def both(name: str, sampler: Sampler, energy: str) -> Iterator[Runner]:
        naive = _naive(f"naive {name}", sampler, first, energy, size, keys)
        yield from fast(name, sampler, energy, naive.name)
        yield naive

    for k in wanted.candidates:
        if k == 1:
            yield from both(PLAIN, every, PLAIN)
            continue
        for name, energy in first.energies.items():
            if energy.whole_sequence:
                yield from both(f"{name}, k = {k}", replace(every, candidates=k, window=WINDOW), name)
            else:
                yield from fast(f"{name}, k = {k}", replace(every, candidates=k), name)
    for name, energy in first.energies.items():
        if isinstance(energy, NormalisedEnergy) and not energy.whole_sequence:
            exact = replace(every, candidates=EXACT)
            yield from fast(f"{name}, exact", exact, name)
            yield from fast(f"{name}, verifying drafts", replace(exact, speculative=True), name)


def _autoregressive(name: str, of: Networks, size: Size, keys: Tensor) -> Runner:
    def write() -> None:
        of.autoregressive.draw(keys, size.length)

    calls = (0.0, float(size.length), math.nan)
    law = (AUTOREGRESSIVE, Sampler(steps=size.steps)) if name == AUTOREGRESSIVE else None
    return Runner(name, 1, RacedSampler(name, [Lap(write)]), "", lambda: calls, law)


def _fast(name: str, sampler: Sampler, of: Networks, energy: str, size: Size, keys: Tensor) -> Runner:
    canvas = torch.full((size.batch, size.length), of.denoiser.mask, device=keys.device)

    def run(on_step: Callable[[StepResult], None] | None = None) -> None:
        sampler.sample(canvas, of.denoiser, of.energies.get(energy), of.schedule, keys, on_step)

    def calls() -> tuple[float, float, float]:
        steps: list[StepResult] = []
        run(steps.append)
        denoised, weighed, accepted = (
            torch.stack([getattr(step, which) for step in steps]).sum().item() / size.batch
            for which in ("denoiser_calls", "energy_calls", "accepted")
        )
        return denoised, weighed, accepted / weighed if sampler.speculative else math.nan

    return Runner(name, sampler.candidates, RacedSampler(name, [Lap(run)]), "", calls, (energy, sampler))


def _naive(name: str, sampler: Sampler, of: Networks, energy: str, size: Size, keys: Tensor) -> Runner:
    """One step within the window and one outside stand for all: a naive step costs the same whatever is masked."""
    generator = torch.Generator(keys.device).manual_seed(0)
    naive = NaiveSampler(sampler)
    grid = torch.arange(1, size.steps + 1, dtype=torch.float64) / size.steps
    weighing = sampler.in_window(grid) & (sampler.candidates > 1)
    half = torch.full((size.batch, size.length), of.denoiser.mask, device=keys.device)
    half[:, : int(HALF * size.length)] = 0

    def lap(i: int, times: int) -> Lap:
        def run() -> None:
            naive.step(half, i, of.denoiser, of.energies.get(energy), of.schedule, generator)

        return Lap(run, times)

    kinds = [(torch.nonzero(which)[:, 0] + 1).tolist() for which in (weighing, ~weighing)]
    laps = [lap(steps[len(steps) // 2], len(steps)) for steps in kinds if steps]
    calls = float(size.steps), float(sampler.candidates * int(weighing.sum()))
    scaled = f"{len(laps)} of {size.steps} steps"
    return Runner(name, sampler.candidates, RacedSampler(name, laps), scaled, lambda: (*calls, math.nan))
