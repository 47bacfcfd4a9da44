"""The seconds that a constraint adds to plain diffusion: samplers with one race those without, at one size."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from edlm.config import NonNegative, Positive, config
from edlm.constraints.automaton import TokenAutomaton
from edlm.constraints.compilation import compile_constraint
from edlm.constraints.constraint import Constraint
from edlm.constraints.specification import AbstractSpecification, JsonSchema, Regex
from edlm.data.tokenizer import Tokenizer
from edlm.data.tokenizer_kinds import HuggingFaceTokenizer
from edlm.energies.uniform import Uniform
from edlm.sampling.sampler import Sampler
from workflows.benchmarking.interleaved_timing import Lap, RacedSampler, Times, race
from workflows.benchmarking.sampling import Networks, Sampling, untrained

PLAIN, WHOLE = "plain", "plain, whole texts"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 12}, "maxItems": 5},
    },
    "required": ["name", "age", "tags"],
}
SPECIFICATIONS: Mapping[str, AbstractSpecification] = {
    "date": Regex(pattern=r"\d{4}-\d\d-\d\d"),
    "sentences": Regex(pattern=r"(?:The [a-z ,]+\. )*The [a-z ,]+\."),
    "schema, free strings": JsonSchema.of(
        {
            "type": "object",
            "properties": {"title": {"type": "string"}, "body": {"type": "string"}},
            "required": ["title"],
        }
    ),
    "schema, bounded strings": JsonSchema.of(PERSON),
    "any JSON object": JsonSchema.of({"type": "object"}),
}


@config
class ConstrainedSampling:
    """Settings of the race."""

    tokenizer: str = "hf://openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"
    """Folder, file, URI or name of a Hugging Face tokenizer, whose vocabulary the untrained denoiser has."""
    length: Positive = 256
    """Tokens per text, L."""
    steps: Positive = 8
    """T."""
    constraints: tuple[str, ...] = tuple(SPECIFICATIONS)
    """Constraints of the race, by the names in the table."""
    letters: tuple[NonNegative, ...] = (8, 32, 64, 128, 256)
    """Letters that a text begins with, of each constraint that is compared with rejection."""
    candidates: Positive = 8
    """k of the second sampler with each constraint."""
    width: Positive = 256
    """Channels per position of the denoiser."""
    layers: Positive = 4
    """Layers of the denoiser."""
    rounds: Positive = 5
    """Timings of every sampler, in turn over the samplers."""
    seed: int = 0
    """Seed of the untrained weights and of the texts."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.constraints if name not in SPECIFICATIONS]:
            raise ValueError(f"constraints names {unknown}; there are {', '.join(map(repr, SPECIFICATIONS))}")


@dataclass(frozen=True)
class ConstraintTiming:
    """Seconds of one sampler, with the automaton of its constraint."""

    name: str
    automaton: TokenAutomaton | None
    times: Times


def measured_model(settings: ConstrainedSampling) -> tuple[Networks, Tokenizer]:
    """Return the untrained networks, and the tokenizer whose vocabulary they have."""
    tokenizer = HuggingFaceTokenizer(uri=settings.tokenizer).build([])
    sizes = Sampling(width=settings.width, layers=settings.layers, seed=settings.seed)
    return untrained(sizes, tokenizer.size, torch.device("cpu")), tokenizer


def measure_constraints(
    settings: ConstrainedSampling, networks: Networks, tokenizer: Tokenizer, say: Callable[[str], None]
) -> list[ConstraintTiming]:
    """Time plain diffusion, plain diffusion that draws whole texts, and samplers with each constraint."""
    automata: dict[str, TokenAutomaton | None] = {PLAIN: None, WHOLE: None}
    contestants = [_contestant(PLAIN, settings, networks, None, 1), _contestant(WHOLE, settings, networks, None, 2)]
    for name in settings.constraints:
        automaton = compile_constraint(SPECIFICATIONS[name], tokenizer, ends=True)
        say(f"{name}: {automaton.transitions.shape[0]} states")
        for k in (1, settings.candidates):
            row = f"{name}, k = {k}"
            automata[row] = automaton
            contestants.append(_contestant(row, settings, networks, automaton, k))
    times = race(contestants, settings.rounds, torch.device("cpu"), say, time.process_time)
    return [ConstraintTiming(name, automata[name], times[name]) for name in automata]


def _contestant(
    name: str, settings: ConstrainedSampling, networks: Networks, automaton: TokenAutomaton | None, candidates: int
) -> RacedSampler:
    sampler = Sampler(steps=settings.steps, candidates=candidates)
    canvas = torch.full((1, settings.length), networks.denoiser.mask)
    energy = Uniform() if candidates > 1 else None
    constraints = None if automaton is None else [Constraint(automaton)]

    def run() -> None:
        seeds = torch.tensor([settings.seed])
        sampler.sample(canvas, networks.denoiser, energy, networks.schedule, seeds, constraints=constraints)

    return RacedSampler(name, [Lap(run)])
