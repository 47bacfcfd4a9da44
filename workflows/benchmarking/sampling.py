"""Samplers of a benchmark: the fast ones, the naive ones, and the autoregressive one, at one size.

Untrained networks have the requested sizes: the cost of a step does not depend on what was learned, and with an
untrained denoiser no two candidates are equal, which is the most expensive case. For trained networks, what is gained
for the seconds is measured, too.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edlm.baselines.naive_sampler import NaiveSampler
from edlm.config import Positive, config, load
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import AbstractEnergy, Model, NormalisedEnergy
from edlm.models.autoregressive import AbstractAutoregressiveModel, AutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser, Denoiser
from edlm.models.execution import AS_TRAINED, Execution
from edlm.models.transformer import TransformerConfig
from edlm.sampling.memory_footprint import peak_bytes
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.state import StepResult
from edlm.schedule import AbstractSchedule, LogLinear
from workflows.benchmarking.interleaved_timing import Lap, RacedSampler, Times, race
from workflows.benchmarking.trained import Trained, Worth, worth
from workflows.evaluation.measurements.measurement import autoregressive, models
from workflows.row_names import AUTOREGRESSIVE, PLAIN

WINDOW = (0.8, 1.0)  # in which the paper's generator resamples
BLOCK = 8
STEP = f"step, blocks of {BLOCK}"
LIGHT_HEADS = 4  # attention heads of the light heads of energies
HALF = 0.5  # of the canvas is masked where one naive step stands for others
SCALE = 0.02  # of the untrained LM head, which would otherwise give every token exactly the same probability
CORRECTION = 0.2  # of the conditional head, which would otherwise accept every token; it rejects about one in three


@config
class Sampling:
    """Settings of the timing; every combination of the lists is timed."""

    vocabularies: tuple[Positive, ...] = (28, 50_257)
    """Vocabulary sizes |V|."""
    lengths: tuple[Positive, ...] = (256,)
    """Tokens per text, L."""
    batches: tuple[Positive, ...] = (1,)
    """Texts that are drawn at once."""
    steps: tuple[Positive, ...] = (32,)
    """T of the samplers."""
    candidates: tuple[Positive, ...] = (1, 2, 8)
    """k; 1 is plain diffusion."""
    width: Positive = 256
    """Channels per position of the untrained denoiser and autoregressive model."""
    layers: Positive = 4
    """Layers of both."""
    heads: Positive = 4
    """Attention heads per layer of both, of `width` / `heads` channels each; the light heads of energies have four."""
    head_width: Positive = 128
    """Width of the light heads of step and conditional energies, which have one layer."""
    execution: Execution = AS_TRAINED
    """Execution of a second set of networks, whose samplers race beside the first; by default there is none. The first
    set and the naive samplers compute in float32, not compiled, like the published ones."""
    models: str | None = None
    """YAML file with the URIs of trained networks (docs/benchmarks/README.md): they race at their own |V| and L, and
    the table has their bounds and the quality of their texts. None: untrained networks."""
    rounds: Positive = 3
    """Timings of every sampler, in turn over the samplers."""
    seed: int = 0
    """Seed of the untrained weights and of the texts."""

    def __post_init__(self) -> None:
        sizes = ("vocabularies", "lengths", "width", "layers", "heads", "head_width")
        given = [name for name in sizes if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if self.models is not None and given:
            raise ValueError(f"{', '.join(given)}: of untrained networks; those that `models` names have their own")

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(width=self.width, layers=self.layers, heads=self.heads)


@dataclass(frozen=True)
class Size:
    """One combination of sizes."""

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
    """The timed part of a sample; empty if whole samples were timed."""
    calls: Callable[[], tuple[float, float, float]]
    """(denoiser passes, energy passes) per sequence, and tokens accepted per energy pass (speculative, else nan)."""
    distribution: tuple[str, Sampler] | None = None
    """Energy name and sampler that draw its texts; None if another runner has the same distribution."""
    naive: str = ""
    """Name of the naive sampler with the same distribution; empty if there is none."""
    plain: str = PLAIN


@dataclass(frozen=True)
class RaceResult:
    """The measured cost of one sampler at one size."""

    size: Size
    name: str
    candidates: int
    scaled: str
    times: Times
    calls: tuple[float, float, float]
    peak_bytes: int
    naive: str
    """Name of the naive sampler with the same distribution; empty if there is none."""
    plain: str
    """Name of plain diffusion with the same networks."""
    worth: Worth | None
    """Only for trained networks."""


@dataclass(frozen=True)
class Networks:
    """All networks at one vocabulary."""

    denoiser: AbstractDenoiser
    autoregressive: AbstractAutoregressiveModel
    energies: Mapping[str, AbstractEnergy]
    schedule: AbstractSchedule


def untrained(settings: Sampling, vocabulary: int, device: torch.device) -> Networks:
    """Return networks of the requested sizes, the same for the same seed."""
    torch.manual_seed(settings.seed)
    denoiser = Denoiser(settings.transformer, vocabulary)
    autoregressive = AutoregressiveModel(settings.transformer, vocabulary)
    for readout in (denoiser.readout, autoregressive.readout):
        nn.init.normal_(readout.weight, std=SCALE)
    width = settings.head_width
    step = StepEnergyConfig(block=BLOCK, width=width, layers=1, heads=LIGHT_HEADS).build(denoiser)
    conditional = ConditionalEnergyConfig(width=width, layers=1, heads=LIGHT_HEADS).build(denoiser)
    nn.init.normal_(conditional.correction.weight, std=CORRECTION)
    whole = BidirectionalEnergyConfig().build(denoiser)
    energies = {"whole sequences": whole, STEP: step, "conditional": conditional}
    return prepared(Networks(denoiser, autoregressive, energies, LogLinear()), AS_TRAINED, device)


def opened(trained: Trained, device: torch.device) -> tuple[Networks, int]:
    """Open the trained networks, and return them with the length of their texts."""
    subject = trained.subject()
    denoiser, _ = models(subject, PLAIN)
    energies = {}
    for name in trained.energies:
        _, energy = models(subject, name)
        assert isinstance(energy, AbstractEnergy), name
        energies[name] = energy
    networks = Networks(denoiser.network, autoregressive(trained.autoregressive), energies, denoiser.schedule)
    return prepared(networks, AS_TRAINED, device), denoiser.length


def prepared(networks: Networks, execution: Execution, device: torch.device) -> Networks:
    """Return copies on `device` that compute as `execution` says. Raise ConfigurationError if they cannot."""
    execution.require(device)
    copies = copy.deepcopy(networks)
    for network in (copies.denoiser, copies.autoregressive, *copies.energies.values()):
        execution.prepare(network.to(device).eval())
    return copies


def measure(settings: Sampling, device: torch.device, say: Callable[[str], None]) -> Iterator[RaceResult]:
    """Measure every sampler at every size, each size in a race of its own."""
    if settings.models is not None:
        trained = load(Trained, settings.models)
        networks, length = opened(trained, device)
        yield from _sizes(settings, networks, [length], trained, device, say)
        return
    for vocabulary in settings.vocabularies:
        yield from _sizes(settings, untrained(settings, vocabulary, device), settings.lengths, None, device, say)


def _sizes(
    settings: Sampling, networks: Networks, lengths, trained: Trained | None, device, say
) -> Iterator[RaceResult]:
    vocabulary, sets = networks.denoiser.vocabulary, {"": networks}
    if settings.execution != AS_TRAINED:
        sets[f", {settings.execution.name}"] = prepared(networks, settings.execution, device)
    for length in lengths:
        for batch in settings.batches:
            for steps in settings.steps:
                size = Size(vocabulary, length, batch, steps)
                say(f"|V| = {vocabulary:,}, L = {length}, {batch} at once, T = {steps}")
                yield from _measure(settings, sets, size, trained, device, say)


def _measure(
    settings: Sampling, sets: Mapping[str, Networks], size: Size, trained: Trained | None, device: torch.device, say
) -> Iterator[RaceResult]:
    runners = list(_runners(settings, sets, size, device))
    times = race([runner.contestant for runner in runners], settings.rounds, device, say)
    for runner in runners:
        peak = max(peak_bytes(lap.run, device) for lap in runner.contestant.laps)
        text_worth = None
        if trained is not None and runner.distribution is not None:
            say(f"samples of {runner.name}")
            text_worth = worth(trained, *runner.distribution)
        yield RaceResult(
            size, runner.name, runner.candidates, runner.scaled, times[runner.name], runner.calls(), peak,
            runner.naive, runner.plain, text_worth,
        )  # fmt: skip


def _runners(settings: Sampling, sets: Mapping[str, Networks], size: Size, device: torch.device) -> Iterator[Runner]:
    """Yield the runners; `sets` are networks by the suffix of their samplers' names, the naive samplers' first."""
    keys = torch.arange(size.batch, device=device) + settings.seed
    for suffix, networks in sets.items():
        yield replace(_autoregressive(AUTOREGRESSIVE + suffix, networks, size, keys), plain=PLAIN + suffix)
    base, first = Sampler(steps=size.steps), next(iter(sets.values()))

    def fast(name: str, sampler: Sampler, energy: str, naive: str = "") -> Iterator[Runner]:
        for suffix, networks in sets.items():
            runner = _fast(name + suffix, sampler, networks, energy, size, keys)
            yield replace(
                runner,
                naive=naive,
                plain=PLAIN + suffix,
                distribution=None if suffix or sampler.speculative else runner.distribution,
            )

    def both(name: str, sampler: Sampler, energy: str) -> Iterator[Runner]:
        naive = _naive(f"naive {name}", sampler, first, energy, size, keys)
        yield from fast(name, sampler, energy, naive.name)
        yield naive

    for k in settings.candidates:
        if k == 1:
            yield from both(PLAIN, base, PLAIN)
            continue
        for name, energy in first.energies.items():
            if energy.whole_sequence:
                yield from both(f"{name}, k = {k}", replace(base, candidates=k, window=WINDOW), name)
            else:
                yield from fast(f"{name}, k = {k}", replace(base, candidates=k), name)
    for name, energy in first.energies.items():
        if isinstance(energy, NormalisedEnergy) and not energy.whole_sequence:
            exact = replace(base, candidates=EXACT)
            yield from fast(f"{name}, exact", exact, name)
            yield from fast(f"{name}, speculative", replace(exact, speculative=True), name)


def _autoregressive(name: str, networks: Networks, size: Size, keys: Tensor) -> Runner:
    def write() -> None:
        networks.autoregressive.draw(keys, size.length)

    calls = (0.0, float(size.length), math.nan)
    distribution = (AUTOREGRESSIVE, Sampler(steps=size.steps)) if name == AUTOREGRESSIVE else None
    return Runner(name, 1, RacedSampler(name, [Lap(write)]), "", lambda: calls, distribution)


def _fast(name: str, sampler: Sampler, networks: Networks, energy: str, size: Size, keys: Tensor) -> Runner:
    canvas = torch.full((size.batch, size.length), networks.denoiser.mask, device=keys.device)

    def run(on_step: Callable[[StepResult], None] | None = None) -> None:
        sampler.sample(canvas, networks.denoiser, networks.energies.get(energy), networks.schedule, keys, on_step)

    def calls() -> tuple[float, float, float]:
        steps: list[StepResult] = []
        run(steps.append)
        denoised, scored, accepted = (
            torch.stack([getattr(step, which) for step in steps]).sum().item() / size.batch
            for which in ("denoiser_calls", "energy_calls", "accepted")
        )
        return denoised, scored, accepted / scored if sampler.speculative else math.nan

    return Runner(name, sampler.candidates, RacedSampler(name, [Lap(run)]), "", calls, (energy, sampler))


def _naive(name: str, sampler: Sampler, networks: Networks, energy: str, size: Size, keys: Tensor) -> Runner:
    """Time one step inside the window and one outside for all: a naive step costs the same whatever is masked."""
    generator = torch.Generator(keys.device).manual_seed(0)
    naive, model = NaiveSampler(sampler), Model(networks.denoiser, networks.energies.get(energy), networks.schedule)
    grid = torch.arange(1, size.steps + 1, dtype=torch.float64) / size.steps
    scored_steps = sampler.in_window(grid) & (sampler.candidates > 1)
    half = torch.full((size.batch, size.length), networks.denoiser.mask, device=keys.device)
    half[:, : int(HALF * size.length)] = 0

    def lap(i: int, times: int) -> Lap:
        def run() -> None:
            naive.step(half, i, model, generator)

        return Lap(run, times)

    kinds = [(torch.nonzero(which)[:, 0] + 1).tolist() for which in (scored_steps, ~scored_steps)]
    laps = [lap(steps[len(steps) // 2], len(steps)) for steps in kinds if steps]
    calls = float(size.steps), float(sampler.candidates * int(scored_steps.sum()))
    scaled = f"{len(laps)} of {size.steps} steps"
    return Runner(name, sampler.candidates, RacedSampler(name, laps), scaled, lambda: (*calls, math.nan))
