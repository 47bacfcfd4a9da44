"""Tables of the benchmark of constraints."""

import math
from collections.abc import Sequence

from workflows.benchmarking.constraints import WHOLE, ConstrainedSampling, ConstraintTiming
from workflows.benchmarking.interleaved_timing import ratio_text
from workflows.benchmarking.load_tables import NONE
from workflows.benchmarking.rejection import RejectionCost
from workflows.reporting.document import DocumentBlock, Paragraph, Table

METHOD = (
    "Samplers run one after the other in every round, after a warm-up round; seconds are of the processor, medians "
    "over the rounds (in brackets: minimum to maximum), and ratios are within one round. The denoiser is untrained, "
    "and the energy of k > 1 is 0, which takes no time. A step of plain diffusion draws the positions that it "
    "unmasks; one that draws whole texts draws all masked positions, as a sampler with a constraint does."
)
REJECTION = (
    "Against rejection: texts that begin with so many small letters or spaces. In one step, a text that is drawn given "
    "the constraint has the distribution of those that rejection keeps. P, the probability of the constraint, is "
    "exact (forward-backward); rejection draws 1 / P texts for each, and its seconds are that number times those of a "
    "plain text."
)


def constraints_blocks(
    rows: Sequence[ConstraintTiming], costs: Sequence[RejectionCost], settings: ConstrainedSampling
) -> list[DocumentBlock]:
    """Return the paragraphs and tables of the race, and of the comparison with rejection."""
    whole = next(row.times for row in rows if row.name == WHOLE)
    cells = []
    for row in rows:
        seconds, automaton = row.times, row.automaton
        sizes = (NONE,) * 3
        if automaton is not None:
            sizes = tuple(f"{size:,}" for size in (*automaton.transitions.shape, len(automaton.edges.to)))
        cells.append(
            (row.name, f"{seconds.median:.3g} ({min(seconds.rounds):.3g} to {max(seconds.rounds):.3g})",
             ratio_text(whole.times_of(seconds)), *sizes)
        )  # fmt: skip
    columns = ("sampler", "seconds per text", f"times {WHOLE}", "states", "classes of tokens", "transitions")
    caption = f"L = {settings.length}, T = {settings.steps}, a denoiser of {settings.layers} layers of {settings.width}"
    return [Paragraph(METHOD), Table(caption, columns, cells), Paragraph(REJECTION), _rejection(costs, settings)]


def _rejection(costs: Sequence[RejectionCost], settings: ConstrainedSampling) -> Table:
    rows = [
        (f"{cost.letters}", f"{cost.automaton.transitions.shape[0]:,}", f"{math.exp(cost.log_p):.2g}",
         f"{cost.given.median:.3g}", f"{cost.draws:.3g}", f"{cost.draws * cost.plain.median:.3g}")
        for cost in costs
    ]  # fmt: skip
    columns = (
        "letters at the beginning", "states", "P", "seconds, given the constraint", "draws of rejection, 1 / P",
        "seconds of rejection",
    )  # fmt: skip
    return Table(f"L = {settings.length}, T = 1", columns, rows)
