"""Bounds of samplers with a constraint, on held-out texts that satisfy it: what energies are worth there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

import edlm
from edlm.config import Positive, config
from edlm.constraints.automaton import DEAD, TokenAutomaton
from edlm.constraints.compilation import compile_constraint
from edlm.constraints.constraint import Constraint
from edlm.constraints.specification import Regex
from edlm.data.local_splits import local_split
from edlm.data.token_file import TokenFile
from edlm.inference.language_model import LanguageModel
from edlm.interfaces import AnyEnergy
from edlm.likelihood.bounds import sampler_bound
from edlm.likelihood.estimate import Estimate, difference
from edlm.sampling.sampler import Sampler
from workflows.reporting.document import DocumentBlock, Paragraph, Table, Verbatim

METHOD = (
    "Upper bounds on -log p(x | C) of held-out texts x that match a pattern C, in nats per token; every sampler draws "
    "from the denoiser's exact posterior given C, and weighs k candidates where there is an energy. Gains are over "
    "plain diffusion with the same constraint and the same T, paired by text; errors are standard errors over texts."
)
PLAIN = "plain"
MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
PATTERNS: Mapping[str, Regex] = {
    "a month is named": Regex(pattern=f"(?:[a-z ]* )?(?:{MONTHS})(?: [a-z ]*)?"),
    "two lines that end in ing": Regex(pattern="[a-z ]{23,33}ing [a-z ]{23,33}ing"),
    "no word of more than six letters": Regex(pattern="(?:[a-z]{1,6} )+[a-z]{1,6}"),
    "the ... of the ... and the ...": Regex(pattern="the [a-z ]+ of the [a-z ]+ and the [a-z ]+"),
}


@config
class ConstrainedLikelihood:
    """Settings of the measurement. The patterns are of the 27 characters of text8."""

    model: str = "english-27@champion"
    """Model with the energies: a bundle's folder or URI, or NAME@ALIAS of a registered one."""
    data: str = "runs/english-27-constraints/prepare"
    """URI of its prepared data, the output of its prepare stage; the validation split has the held-out texts."""
    steps: tuple[Positive, ...] = (2, 4, 8)
    """T."""
    candidates: Positive = 8
    """k of the samplers with an energy."""
    sequences: Positive = 200
    """Most held-out texts of a pattern."""
    draws: Positive = 2
    """Paths of a text through the steps."""
    seed: int = 1
    """Seed of the noise and of the texts."""


@dataclass(frozen=True)
class ConstrainedBounds:
    """What was measured of one pattern."""

    pattern: str
    texts: int
    rarity: float
    """Share of the held-out windows of L tokens that match."""
    bounds: Mapping[tuple[int, str], Estimate]
    """By T and energy, in nats per text given that it matches."""
    examples: Mapping[str, str]
    """A generated text by energy, at the middle T."""

    def gain(self, steps: int, energy: str) -> Estimate:
        """Return how far the energy's bound lies below that of plain diffusion, paired by text."""
        return difference(self.bounds[steps, PLAIN], self.bounds[steps, energy])


def measure_constrained_bounds(
    settings: ConstrainedLikelihood, say: Callable[[str], None]
) -> tuple[int, list[ConstrainedBounds]]:
    """Return L and, by pattern, the bounds of plain diffusion and of every energy of the model that has candidates."""
    model = edlm.load(settings.model)
    tokens = TokenFile.open(local_split(settings.data, "validation"), "validation").tokens
    return model.length, [_measure(name, model, tokens, settings, say) for name in PATTERNS]


def _measure(
    name: str, model: LanguageModel, tokens: np.ndarray, settings: ConstrainedLikelihood, say: Callable[[str], None]
) -> ConstrainedBounds:
    automaton = compile_constraint(PATTERNS[name], model.generator.tokenizer)
    first, rarity = matching_windows(tokens, automaton, model.length)
    first = first[:: -(-len(first) // settings.sequences)]
    x0 = torch.from_numpy(np.stack([tokens[i : i + model.length] for i in first]).astype(np.int64))
    denoiser, constraints = model.generator.denoiser, [Constraint(automaton)] * len(x0)
    bounds, examples = {}, {}
    energies: dict[str, AnyEnergy | None] = {PLAIN: None, **model.generator.energies}
    for energy_name, energy in energies.items():
        k = 1 if energy is None else settings.candidates
        for steps in settings.steps:
            sampler = Sampler(steps=steps, candidates=k)
            bounds[steps, energy_name] = bound = sampler_bound(
                x0, denoiser.network, energy, denoiser.schedule, sampler, settings.seed, settings.draws,
                constraints=constraints,
            )  # fmt: skip
            say(f"{name}, T = {steps}, {energy_name}: {bound.mean / model.length:.4f} nats per token")
        examples[energy_name] = model.generate(
            max_tokens=model.length, steps=settings.steps[len(settings.steps) // 2], candidates=k,
            energy=None if energy is None else energy_name, constraint=PATTERNS[name], seed=settings.seed,
        ).text  # fmt: skip
    return ConstrainedBounds(name, len(x0), rarity, bounds, examples)


def matching_windows(
    tokens: Int[np.ndarray, " n"], automaton: TokenAutomaton, length: int
) -> tuple[Int[np.ndarray, " m"], float]:
    """Return where windows of `length` tokens begin that the automaton accepts, and the share of all that it accepts.

    The windows returned do not overlap. Raise ValueError if there is none.
    """
    classes = automaton.classes.numpy()[np.asarray(tokens, dtype=np.int64)]
    table, state = automaton.transitions.numpy(), np.full(len(tokens) - length + 1, automaton.start)
    for i in range(length):
        state = table[state, classes[i : i + len(state)]]
    accepted = np.flatnonzero(automaton.accepting.numpy()[state] & (state != DEAD))
    if not len(accepted):
        raise ValueError(f"none of the {len(state):,} windows of {length} tokens satisfies the constraint")
    first, free = [], 0
    for i in accepted.tolist():
        if i >= free:
            first.append(i)
            free = i + length
    return np.array(first), len(accepted) / len(state)


def constrained_bounds_blocks(
    length: int, patterns: list[ConstrainedBounds], settings: ConstrainedLikelihood
) -> list[DocumentBlock]:
    """Return a table per pattern, and a text that each sampler generated."""
    blocks: list[DocumentBlock] = [Paragraph(METHOD)]
    for measured in patterns:
        rows = [_row(measured, steps, energy, length, settings.candidates) for steps, energy in measured.bounds]
        rarity = f"1 in {1 / measured.rarity:,.0f} held-out windows"
        caption = f"{measured.pattern}: {measured.texts} texts, L = {length}; {rarity}"
        columns = ("T", "energy", "k", "bound, nats per token", "gain over plain", "gain / its error")
        blocks.append(Table(caption, columns, sorted(rows, key=lambda row: int(row[0]))))
        steps = settings.steps[len(settings.steps) // 2]
        texts = "\n".join(f"{energy}: {text}" for energy, text in measured.examples.items())
        blocks += [Verbatim(f"{PATTERNS[measured.pattern].pattern}; T = {steps}, seed {settings.seed}", texts)]
    return blocks


def _row(measured: ConstrainedBounds, steps: int, energy: str, length: int, k: int) -> tuple[str, ...]:
    bound = measured.bounds[steps, energy]
    if energy == PLAIN:
        return (str(steps), energy, "1", _nats(bound, length), "–", "–")
    gain = measured.gain(steps, energy)
    ratio = f"{gain.mean / gain.standard_error:.1f}"
    return (str(steps), energy, str(k), _nats(bound, length), _nats(gain, length), ratio)


def _nats(estimate: Estimate, length: int) -> str:
    return f"{estimate.mean / length:.4f} ± {estimate.standard_error / length:.4f}"
