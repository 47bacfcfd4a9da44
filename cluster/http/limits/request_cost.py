"""What a request may cost at most, in passes of the denoiser over one canvas."""

from collections import Counter
from collections.abc import Iterator

from edlm.inference.canvas import context_tokens
from edlm.inference.cost_model import most_of_canvas
from edlm.inference.generator import TextGenerator
from edlm.inference.request import Request
from edlm.interfaces import AbstractEnergy
from edlm.sampling.sampler import EXACT, Sampler

# A candidate that fills a whole canvas, in passes. One price for all, between what was measured at commit 4fe9710 for
# step heads (0.5 where the vocabulary is 50,257, 0.8 where it is 28) and networks on whole drafts (1.0). A conditional
# head takes 0.6 with 28 tokens and 3.9 with 50,257, where each of its candidates' tokens is projected: engines measure
# what work really takes, and let in by that; this is the currency of limits and allowances.
CANDIDATE_SHARE = 0.75
EXACT_SHARE = 0.5  # a token that is drawn exactly: 0.4 with 50,257 tokens, 0.05 with 28 (measured there, too)


def of_job(job: Request, generator: TextGenerator) -> float:
    """Passes to write the text, whatever its seed: no fewer than its answer will report."""
    energy = generator.energy_for(job.sampler, job.energy)
    canvases = Counter(_masked(job, generator.length))
    return sum(count * _of_canvas(masked, generator.length, job.sampler, energy) for masked, count in canvases.items())


def of_score(tokens: int, draws: int, sampler: Sampler, energy: str | None, generator: TextGenerator) -> float:
    """Passes to score a text: for each draw the NELBO, the steps of the bound, and every energy once."""
    weigh = generator.energy_for(sampler, energy)
    bound = _of_canvas(tokens, tokens, sampler, weigh)
    return draws * (1 + bound + of_energies(len(generator.energies)))


def of_energies(count: int) -> float:
    """Passes to measure so many energies of one text, each in its own noise."""
    return count * (1 + CANDIDATE_SHARE)


def _masked(job: Request, length: int) -> Iterator[int]:
    """Of each canvas how many places are filled: past the text, too, where the canvas is longer (`RunningSequence`)."""
    if job.max_tokens is None:
        holes = job.known.count(None)
        yield length - len(job.known) + holes if holes else 0
        return
    known, wanted = len(job.known), job.max_tokens
    while wanted > 0:
        masked = length - context_tokens(known, wanted, length)
        yield masked
        known, wanted = known + min(wanted, masked), max(0, wanted - masked)


def _of_canvas(masked: int, length: int, sampler: Sampler, energy: AbstractEnergy | None) -> float:
    work = most_of_canvas(masked, length, sampler, energy)
    if energy is not None and sampler.candidates == EXACT:
        return work.passes + EXACT_SHARE * work.candidates * length
    return work.passes + CANDIDATE_SHARE * work.candidates
