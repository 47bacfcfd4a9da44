"""A constraint against rejection: what a text costs that is drawn given the constraint, and how often it is drawn else.

In one step (T = 1) plain diffusion draws the tokens independently of one another, and a sampler with a constraint from
the same distribution given the constraint: what rejection keeps. Of P, the probability of the constraint, which
forward-backward gives exactly, rejection draws 1 / P texts for each that it keeps.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from edlm.constraints.automaton import TokenAutomaton
from edlm.constraints.compilation import compile_constraint
from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.constraints.specification import Regex
from edlm.cooperative_work import run_to_end
from edlm.data.tokenizer import Tokenizer
from edlm.models.denoiser import AbstractDenoiser
from edlm.sampling.constrained import constrained_posterior
from edlm.sampling.sampler import Sampler
from workflows.benchmarking.interleaved_timing import Lap, RacedSampler, Times, race
from workflows.benchmarking.sampling import Networks

PLAIN = "plain"


@dataclass(frozen=True)
class RejectionCost:
    """Cost of one constraint by the sampler with it, and by rejection."""

    letters: int
    """Small letters and spaces that the text begins with."""
    automaton: TokenAutomaton
    log_p: float
    """log P of the constraint."""
    given: Times
    """Of a text that is drawn given the constraint."""
    plain: Times
    """Of a text that rejection draws."""

    @property
    def draws(self) -> float:
        """Expected number of texts that rejection draws for one, 1 / P."""
        return math.exp(-self.log_p)


def measure_rejection(
    networks: Networks, tokenizer: Tokenizer, length: int, letters: tuple[int, ...], rounds: int, seed: int,
    say: Callable[[str], None],
) -> list[RejectionCost]:  # fmt: skip
    """Time texts of `length` tokens that begin with so many letters, in one step."""
    automata = {
        count: compile_constraint(Regex(rf"[a-z ]{{{count}}}(?:.|\n)*"), tokenizer) for count in letters
    }  # of falling probability
    canvas = torch.full((1, length), networks.denoiser.mask)
    sampler = Sampler(steps=1)

    def contestant(name: str, constraint: Constraint | None) -> RacedSampler:
        constraints = None if constraint is None else [constraint]

        def run() -> None:
            seeds = torch.tensor([seed])
            sampler.sample(canvas, networks.denoiser, None, networks.schedule, seeds, constraints=constraints)

        return RacedSampler(name, [Lap(run)])

    contestants = [contestant(PLAIN, None)]
    contestants += [contestant(f"{count} letters", Constraint(automaton)) for count, automaton in automata.items()]
    times = race(contestants, rounds, torch.device("cpu"), say, time.process_time)
    costs = []
    for count, automaton in automata.items():
        log_p = log_probability(networks.denoiser, automaton, length)
        say(f"{count} letters: P = {math.exp(log_p):.3g}")
        costs.append(RejectionCost(count, automaton, log_p, times[f"{count} letters"], times[PLAIN]))
    return costs


@torch.no_grad()
def log_probability(denoiser: AbstractDenoiser, automaton: TokenAutomaton, length: int) -> float:
    """Return log P of the automaton's texts of `length` tokens in one step of plain diffusion."""
    canvas = torch.full((1, length), denoiser.mask)
    context = denoiser.read(canvas, torch.ones(1))
    rows = RowConstraints([Constraint(automaton)])
    u = torch.full((1, 1, length), 0.5, dtype=torch.float64)  # draws nothing
    return run_to_end(constrained_posterior(denoiser, context, canvas, rows, u)).log_z.item()
