"""Texts with a constraint on a device: those of the CPU, in any company, and only small sums come to the host."""

import numpy as np
import pytest
import torch

from edlm.constraints.automaton import TokenAutomaton, minimal_form
from edlm.constraints.constraint import Constraint
from edlm.inference.canvas import canvas
from edlm.inference.generator import TextGenerator
from edlm.sampling.sampler import Sampler
from tests.constraints.automata import TABLE, inside
from tests.gpu.bundle import LENGTH
from tests.gpu.test_generation import LEAST_EQUAL, PROMPT, TEXTS, equal_share
from workflows.benchmarking.pretended_device import NAME, pretended

CASES: dict[str, tuple[str | None, int]] = {
    "plain": (None, 1), "step": ("step", 3), "conditional": ("conditional", 3), "residual": ("residual", 3),
    "bidirectional": ("bidirectional", 2),
}  # fmt: skip


def automata(vocabulary: int) -> list[TokenAutomaton]:
    """Three states and classes of a third of the tokens each; a class of one token, which never comes twice."""
    twice = np.array([[0, 1], [0, -1]])
    return [
        minimal_form(np.arange(vocabulary) % 3, TABLE, 0, np.array([True, False, True])),
        minimal_form((np.arange(vocabulary) == 4).astype(np.int64), twice, 0, np.array([True, True])),
    ]


def constrained(generator: TextGenerator, energy: str | None, k: int, rows: range) -> torch.Tensor:
    """Texts of these seeds; of three, one has no constraint, and one's automaton reads a part of the canvas."""
    three, two = automata(generator.mask)
    kinds = [Constraint(three), None, Constraint(two, 3, 9)]
    xt = canvas(PROMPT, LENGTH, generator.mask).repeat(len(rows), 1).to(generator.device)
    sampler, seeds = Sampler(steps=3, candidates=k), torch.tensor(rows, device=generator.device)
    return sampler.sample(
        xt, generator.denoiser.network, generator.energy_for(sampler, energy), generator.denoiser.schedule, seeds,
        constraints=[kinds[row % 3] for row in rows],
    ).cpu()  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_texts_with_a_constraint_are_those_of_the_cpu_alone_and_in_company(device, on_cpu, on_device, report, case):
    rows = range(3 * TEXTS[device])
    actual, expected = (constrained(generator, *CASES[case], rows) for generator in (on_device, on_cpu))
    share = equal_share([tuple(row) for row in actual.tolist()], [tuple(row) for row in expected.tolist()])
    report(texts=len(rows), equal_share=share)
    assert share >= LEAST_EQUAL[device]
    assert inside(automata(on_cpu.mask)[0], actual[::3]).all()
    if device == NAME:
        assert torch.equal(constrained(on_device, *CASES[case], range(2, 3))[0], actual[2])


@pytest.mark.parametrize(("case", "waits"), [("plain", 2), ("step", 3), ("conditional", 3)])
def test_a_step_waits_for_its_positions_the_sums_and_the_number_of_distinct_candidates(on, case, waits):
    energy, k = CASES[case]
    with pretended() as counts:
        generator = on(NAME)
        constraints = [Constraint(automata(generator.mask)[0])] * 2
        xt = canvas((), LENGTH, generator.mask).repeat(2, 1).to(NAME)
        sampler, schedule = Sampler(steps=1, candidates=k), generator.denoiser.schedule
        arguments = generator.denoiser.network, generator.energy_for(sampler, energy), schedule, torch.arange(2)
        sampler.sample(xt, *arguments, constraints=constraints)  # what is kept on the device gets there
        counts.clear()
        sampler.sample(xt, *arguments, constraints=constraints)
        ends = 2  # the canvas before the first step, and whether a row is broken after the last
        assert counts.waits <= waits + ends
