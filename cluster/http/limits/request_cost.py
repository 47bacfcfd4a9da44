"""Upper bounds on the cost of a request, in denoiser passes over one canvas."""

from collections import Counter
from collections.abc import Iterator

from edlm.inference.canvas import context_tokens
from edlm.inference.cost_model import most_of_canvas
from edlm.inference.cost_model import of_constraint as work_of_constraint
from edlm.inference.generator import TextGenerator
from edlm.inference.request import Request
from edlm.inference.request_automaton import automaton_of
from edlm.interfaces import AbstractEnergy
from edlm.sampling.sampler import EXACT, Sampler

# Cost of a candidate that fills a whole canvas, in passes. One price for all energies, between the measurements at
# commit 4fe9710 for step heads (0.5 with a vocabulary of 50,257, 0.8 with 28) and networks on whole sequences (1.0). A
# conditional head takes 0.6 with 28 tokens and 3.9 with 50,257, where it projects the tokens of each candidate.
# Engines admit by measured seconds; this price is only the unit of work limits and rate limits.
CANDIDATE_SHARE = 0.75
EXACT_SHARE = 0.5  # per exactly drawn token: 0.4 with 50,257 tokens, 0.05 with 28 (measured at the same commit)


def of_request(request: Request, generator: TextGenerator) -> float:
    """Return an upper bound, over all seeds, on the passes to generate the text that its response will report.

    Without what its constraint adds (`of_constraint`).
    """
    energy = generator.energy_for(request.sampler, request.energy)
    canvases = Counter(_masked(request, generator.length))
    return sum(
        count * _of_canvas(masked, generator.length, request.sampler, energy) for masked, count in canvases.items()
    )


def of_constraint(request: Request, generator: TextGenerator) -> float:
    """Return an upper bound on the passes that the request's constraint adds, which is compiled unless it is already.

    Raise ConfigurationError for a constraint that cannot be compiled, or that no text of the request satisfies.
    """
    energy, automaton = generator.energy_for(request.sampler, request.energy), automaton_of(request, generator)
    steps = sum(min(request.sampler.steps, masked) for masked in _masked(request, generator.length))
    return CANDIDATE_SHARE * steps * work_of_constraint(automaton, generator.length, request.sampler, energy)


def of_score(
    tokens: int,
    draws: int,
    sampler: Sampler,
    energy: str | None,
    generator: TextGenerator,
    prompt: int = 0,
    exact_order: bool = False,
) -> float:
    """Return the passes to score a text after `prompt` tokens.

    Per draw the NELBO, the steps of the bound, and every energy once; the exact likelihood costs the steps once.
    """
    scorer = generator.energy_for(sampler, energy)
    bound = _of_canvas(tokens, prompt + tokens, sampler, scorer)
    return draws * (1 + bound + of_energies(len(generator.energies))) + exact_order * bound


def of_energies(count: int) -> float:
    """Return the passes to evaluate `count` energies of one text, each with its own noise."""
    return count * (1 + CANDIDATE_SHARE)


def _masked(request: Request, length: int) -> Iterator[int]:
    """Yield the masked positions per canvas, including those past the text in a longer canvas (`RunningSequence`)."""
    if request.max_tokens is None:
        holes = request.known.count(None)
        yield length - len(request.known) + holes if holes else 0
        return
    known, remaining = len(request.known), request.max_tokens
    while remaining > 0:
        masked = length - context_tokens(known, remaining, length)
        yield masked
        known, remaining = known + min(remaining, masked), max(0, remaining - masked)


def _of_canvas(masked: int, length: int, sampler: Sampler, energy: AbstractEnergy | None) -> float:
    work = most_of_canvas(masked, length, sampler, energy)
    if energy is not None and sampler.candidates == EXACT:
        return work.passes + EXACT_SHARE * work.candidates * length
    return work.passes + CANDIDATE_SHARE * work.candidates
