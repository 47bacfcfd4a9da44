"""Texts with a constraint follow the distribution that is listed, with any energy; none lies outside."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from edlm.config import ConfigurationError
from edlm.constraints.automaton import minimal_form
from edlm.constraints.constraint import Constraint
from edlm.sampling.sampler import Sampler
from edlm.sampling.state import NonFiniteRows
from edlm.sampling.unmasking import MostCertain, Remasking
from edlm.schedule import LogLinear
from tests.constraints.automata import NO_TWO, SUM, THREE_STATES, inside, tables
from tests.counting import chi_square
from tests.enumeration import sampler_distribution
from tests.worlds import Conditional, Marginals, OnProposal, Residual, world

FAR = 3.9
N = 4000
WORLD = world("dense", length=4, seed=1)
M = WORLD.mask
READER = Marginals(WORLD, mix=0.1, drift=0.3)
ENERGIES = {
    "plain": None,
    "whole drafts": Residual(WORLD, whole_sequence=True),
    "step": Residual(WORLD, whole_sequence=False),
    "step in blocks": Residual(WORLD, whole_sequence=False, block=2),
    "conditional": Conditional(WORLD),
    "residual": OnProposal(WORLD, world("dense", length=4, seed=5)),
}


def counts(texts: torch.Tensor) -> torch.Tensor:
    return torch.bincount((texts * 3 ** torch.arange(3, -1, -1)).sum(dim=1), minlength=81)


def sampled(sampler: Sampler, energy, constraints, canvas: torch.Tensor | None = None, seeds=None) -> torch.Tensor:
    canvas = WORLD.canvas(len(constraints)) if canvas is None else canvas
    seeds = torch.arange(len(constraints)) if seeds is None else seeds
    return sampler.sample(canvas, READER, energy, LogLinear(), seeds, constraints=constraints)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ENERGIES)
def test_the_texts_follow_the_distribution_given_the_constraint(name, steps):
    energy = ENERGIES[name]
    sampler = Sampler(steps=steps, candidates=1 if energy is None else 2)
    actual = counts(sampled(sampler, energy, [Constraint(THREE_STATES)] * N))
    expected = sampler_distribution(
        WORLD, READER, energy, sampler, LogLinear(), WORLD.canvas(1)[0], lambda x: inside(THREE_STATES, x)
    )
    assert expected.sum().item() == pytest.approx(1)
    assert expected[~inside(THREE_STATES, WORLD.texts)].sum() == 0
    assert chi_square(actual, expected) < FAR  # infinite for a text outside


def test_with_one_step_they_are_as_if_drawn_until_one_satisfies_the_constraint():
    plain = Sampler(steps=1).sample(WORLD.canvas(6 * N), READER, None, LogLinear(), torch.arange(6 * N))
    kept = counts(plain[inside(SUM, plain)])
    actual = counts(sampled(Sampler(steps=1), None, [Constraint(SUM)] * N))
    assert chi_square(actual, kept / kept.sum()) < FAR + 3  # the reference is drawn, too
    assert ((actual > 0) <= (inside(SUM, WORLD.texts))).all()


def test_rows_with_other_automata_or_none_follow_their_own_distributions_and_are_the_same_alone():
    each, sampler, energy = 1000, Sampler(steps=2, candidates=2), ENERGIES["step"]
    kinds = [Constraint(THREE_STATES), None, Constraint(NO_TWO), Constraint(SUM)]
    constraints = [kinds[row % 4] for row in range(4 * each)]
    texts = sampled(sampler, energy, constraints)
    for kind, constraint in enumerate(kinds):
        accepts = None if constraint is None else lambda x, c=constraint: inside(c.automaton, x)
        expected = sampler_distribution(WORLD, READER, energy, sampler, LogLinear(), WORLD.canvas(1)[0], accepts)
        assert chi_square(counts(texts[kind::4]), expected) < FAR, kind
    for row in range(8):
        alone = sampled(sampler, energy, [constraints[row]], seeds=torch.tensor([row]))
        assert torch.equal(alone[0], texts[row])
    free = sampler.sample(WORLD.canvas(each), READER, energy, LogLinear(), torch.arange(1, 4 * each, 4))
    assert torch.equal(free, texts[1::4])


@given(tables())
@settings(max_examples=12, deadline=None)
def test_no_text_lies_outside_whatever_the_automaton_the_energy_and_the_number_of_steps(machine):
    automaton, canvas = minimal_form(np.arange(3), *machine), torch.tensor([M, 1, M, M])
    texts = WORLD.texts[WORLD.texts[:, 1] == 1]
    for index, (energy, steps) in enumerate(zip(ENERGIES.values(), (1, 2, 3, 5, 8, 2), strict=True)):
        sampler = Sampler(steps=steps, candidates=1 if energy is None else 3)
        constraints, rows = [Constraint(automaton)] * 8, canvas.repeat(8, 1)
        if not inside(automaton, texts).any():
            with pytest.raises(ConfigurationError, match="row 0"):
                sampled(sampler, energy, constraints, rows)
        else:
            filled = sampled(sampler, energy, constraints, rows, torch.arange(8) + 100 * index)
            assert bool((filled[:, 1] == 1).all())
            assert inside(automaton, filled).all()


@pytest.mark.parametrize("unmasking", [MostCertain(), Remasking(share=0.5)])
def test_any_rule_of_unmasking_keeps_the_texts_inside(unmasking):
    sampler = Sampler(steps=4, candidates=2, unmasking=unmasking)
    texts = sampled(sampler, ENERGIES["step"], [Constraint(SUM)] * 200)
    assert inside(SUM, texts).all()
    assert len({tuple(text) for text in texts.tolist()}) > 5


def test_the_window_and_the_temperature_count_as_without_a_constraint():
    sampler = Sampler(steps=2, candidates=2, window=(0.0, 0.5), energy_temperature=0.5)
    energy = ENERGIES["whole drafts"]
    actual = counts(sampled(sampler, energy, [Constraint(NO_TWO)] * N))
    arguments = (WORLD, READER, energy, sampler, LogLinear(), WORLD.canvas(1)[0])
    assert chi_square(actual, sampler_distribution(*arguments, lambda x: inside(NO_TWO, x))) < FAR


def test_the_result_of_a_step_names_the_candidate_that_was_picked():
    results = []
    sampler = Sampler(steps=1, candidates=4)
    sampler.sample(
        WORLD.canvas(3), READER, ENERGIES["step in blocks"], LogLinear(), torch.arange(3), results.append,
        [Constraint(SUM), None, Constraint(NO_TWO)],
    )  # fmt: skip
    assert results[0].energies.shape == (3, 4, 2)
    assert results[0].picked[0, 0] == results[0].picked[0, 1]  # one candidate for all blocks
    assert results[0].energy_calls.tolist() == [4, 4, 4]


def test_exact_draws_are_refused_with_a_constraint():
    with pytest.raises(ConfigurationError, match=r"exact draws.*give candidates >= 1"):
        sampled(Sampler(steps=2, candidates=0), ENERGIES["conditional"], [Constraint(SUM)])


def test_a_constraint_for_another_vocabulary_or_too_few_of_them_is_refused():
    other = minimal_form(np.arange(4), np.array([[0, 0, 0, 0]]), 0, np.array([True]))
    with pytest.raises(ConfigurationError, match="made for 4 tokens, and the model has 3"):
        sampled(Sampler(steps=1), None, [Constraint(other)])
    with pytest.raises(ConfigurationError, match="one per row, 2 here; got 1"):
        sampled(Sampler(steps=1), None, [Constraint(SUM)], WORLD.canvas(2))


def test_what_cannot_be_is_refused_with_the_lengths_or_the_token_that_exclude_it():
    two = minimal_form(
        np.arange(3), np.array([[1, -1, -1], [-1, 2, 2], [-1, -1, -1]]), 0, np.array([False, False, True])
    )
    for constraint, canvas, message in [
        (Constraint(two), [M, M, M, M], "no text of 4 tokens satisfies the constraint: its texts have 2 tokens"),
        (Constraint(two, stop=1, later=2), [M, M, M, M], "no text of 3 tokens"),
        (Constraint(two, first=2), [0, 0, M, 0], "the known token 0 at position 3 contradicts"),
        (Constraint(SUM), [0, 0, 0, 1], "the known tokens leave no text of 4 tokens"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            sampled(Sampler(steps=1), None, [constraint], torch.tensor([canvas]))


def test_a_row_to_whose_constraint_the_denoiser_gives_no_probability_is_named_and_the_others_finish():
    class Sure(Marginals):
        def read(self, xt, t):
            impossible = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
            return torch.where((xt[:, 0] == 2)[:, None, None], impossible, super().read(xt, t))

    canvas = torch.tensor([[0, M, M, M], [2, M, M, M]])
    with pytest.raises(NonFiniteRows, match=r"rows \[1\] of 2") as raised:
        Sampler(steps=2).sample(
            canvas, Sure(WORLD), None, LogLinear(), torch.arange(2), constraints=[Constraint(SUM)] * 2
        )
    assert SUM.accepts(raised.value.x[0].tolist())
