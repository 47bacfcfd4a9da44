"""log Z, draws and clamped probabilities against the sum over all texts, and the same alone as in company."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.constraints.automaton import minimal_form
from edlm.constraints.class_masses import class_masses
from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.constraints.forward_backward import AutomataOfRows
from edlm.cooperative_work import run_to_end
from edlm.sampling.constrained import ConstrainedPosterior, constrained_posterior
from tests.constraints.automata import NO_TWO, SUM, THREE_STATES, inside, tables
from tests.counting import chi_square
from tests.worlds import Marginals, world

WORLD = world("dense", length=4, seed=1)
MASK = WORLD.mask
DENOISER = Marginals(WORLD, mix=0.1)


def posterior(constraints, xt: torch.Tensor, k: int = 1, seed: int = 0) -> ConstrainedPosterior:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(len(xt), k, xt.shape[1], generator=generator, dtype=torch.float64)
    context = DENOISER.read(xt, torch.ones(len(xt), dtype=torch.float64))
    return run_to_end(constrained_posterior(DENOISER, context, xt, RowConstraints(constraints), u))


def of_texts(xt: torch.Tensor) -> torch.Tensor:
    """P_theta(text | x_t) of every text of the world."""
    table = DENOISER.read(xt[None], torch.ones(1, dtype=torch.float64))[0]
    log_p = table.gather(-1, WORLD.texts.T).T
    agrees = ((xt == MASK) | (WORLD.texts == xt)).all(dim=1)
    return torch.where(agrees, torch.where(xt == MASK, log_p, 0.0).sum(dim=1).exp(), 0.0)


@given(tables(), st.lists(st.sampled_from([0, 1, 2, 3]), min_size=4, max_size=4))
@settings(max_examples=80, deadline=None)
def test_log_z_is_the_probability_of_the_language(machine, canvas):
    automaton, xt = minimal_form(np.arange(3), *machine), torch.tensor(canvas)
    expected = of_texts(xt)[inside(automaton, WORLD.texts)].sum().item()
    actual = posterior([Constraint(automaton)], xt[None]).log_z.item()
    assert actual == pytest.approx(math.log(expected), abs=1e-12) if expected > 0 else actual == -math.inf


@given(tables(), st.lists(st.sampled_from([0, 3]), min_size=4, max_size=4), st.integers(0, 80))
@settings(max_examples=80, deadline=None)
def test_clamped_tokens_have_the_share_of_the_texts_that_hold_them(machine, canvas, index):
    automaton, x0 = minimal_form(np.arange(3), *machine), WORLD.texts[index]
    where = torch.tensor(canvas) == 3
    xt = torch.where(torch.arange(4) == 0, MASK, torch.where(where, MASK, x0))
    log_p = DENOISER.read(xt[None], torch.ones(1, dtype=torch.float64)).gather(-1, x0[None, :, None])[..., 0]
    whole = posterior([Constraint(automaton)], xt[None])
    clamped = whole.clamped(x0[None], where[None], log_p)
    texts, accepted = of_texts(xt), inside(automaton, WORLD.texts)
    holds = (~where | (WORLD.texts == x0)).all(dim=1)
    expected = texts[accepted & holds].sum().item()
    assert clamped.log_z.exp().item() == pytest.approx(expected, abs=1e-12)
    if expected > 0:  # the rest is drawn given what is clamped
        x, _ = clamped.draw(torch.full((1, 1, 4), 0.7, dtype=torch.float64))
        assert automaton.accepts(torch.where(where, x0, x[0, 0]).tolist())


@pytest.mark.parametrize("automaton", [THREE_STATES, NO_TWO, SUM])
def test_draws_follow_the_distribution_given_the_constraint_and_none_lies_outside(automaton):
    n, xt = 6000, torch.tensor([MASK, MASK, 1, MASK])
    drawn = posterior([Constraint(automaton)], xt[None], k=n)
    x, log_p = drawn.draw(torch.rand(1, n, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    expected = of_texts(xt) * inside(automaton, WORLD.texts)
    counts = torch.bincount((x[0] * 3 ** torch.arange(3, -1, -1)).sum(dim=1), minlength=81)
    assert chi_square(counts, expected / expected.sum()) < 3.9
    torch.testing.assert_close(
        log_p[0, :50].sum(dim=1).exp(), of_texts(xt)[(x[0, :50] * 3 ** torch.arange(3, -1, -1)).sum(dim=1)]
    )


def test_a_part_of_the_canvas_may_be_read_and_more_tokens_may_follow_it():
    """Positions 1 to 2, from a state, with one token to come: the sum over all that these leave possible."""
    xt, state = torch.full((4,), MASK), THREE_STATES.after([1])
    constraint = Constraint(THREE_STATES, first=1, stop=3, state=state, later=1)
    ends = [
        any(THREE_STATES.accepting[THREE_STATES.after([*text[1:3], more], state)] for more in range(3))
        for text in WORLD.texts.tolist()
    ]
    whole = posterior([constraint], xt[None], k=4000)
    assert whole.log_z.exp().item() == pytest.approx(of_texts(xt)[torch.tensor(ends)].sum().item())
    x, _ = whole.draw(torch.rand(1, 4000, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    expected = torch.where(torch.tensor(ends), of_texts(xt), 0.0)
    counts = torch.bincount((x[0] * 3 ** torch.arange(3, -1, -1)).sum(dim=1), minlength=81)
    assert chi_square(counts, expected / expected.sum()) < 3.9


def test_a_row_has_the_same_numbers_alone_and_among_rows_with_other_automata():
    wide = minimal_form(np.arange(3), np.arange(3)[None, :].repeat(3, 0), 0, np.array([True, True, False]))
    constraints = [Constraint(each) for each in (THREE_STATES, wide, NO_TWO, SUM)] + [Constraint(NO_TWO, 1, 3)]
    xt = torch.tensor([[3, 3, 3, 3], [3, 0, 3, 3], [3, 3, 1, 3], [3, 3, 3, 3], [2, 3, 3, 3]])
    u = torch.rand(5, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    context = DENOISER.read(xt, torch.ones(5, dtype=torch.float64))

    def of(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen = RowConstraints([constraints[row] for row in rows])
        whole = run_to_end(constrained_posterior(DENOISER, context[rows], xt[rows], chosen, u[rows]))
        return whole.log_z, *whole.draw(u[rows].flip(2))

    together = of([0, 1, 2, 3, 4])
    for row in range(5):
        for company in ([row], [row, (row + 2) % 5]):
            assert all(torch.equal(alone[0], all_[row]) for alone, all_ in zip(of(company), together, strict=True))


def test_probabilities_far_below_the_least_number_keep_their_ratio():
    """Ten positions whose tokens have log p = -400, -401 and -402: no product of them is a float64."""
    length, log_p = 10, np.array([-400.0, -401.0, -402.0])
    mass = np.full((1, length, NO_TWO.transitions.shape[1]), -np.inf)
    for token_class in range(1, mass.shape[2]):
        mass[..., token_class] = np.logaddexp.reduce(log_p[NO_TWO.classes.numpy() == token_class])
    rows = AutomataOfRows([Constraint(NO_TWO)], length)
    expected = np.array([np.logaddexp(-400.0, -401.0), -402.0])  # after any other token than 2, and after 2
    for _ in range(length - 1):
        other = np.logaddexp(-400.0, -401.0) + np.logaddexp(*expected)
        expected = np.array([other, -402.0 + expected[0]])
    assert rows.log_z(rows.backward(mass))[0] == pytest.approx(np.logaddexp(*expected))


def test_a_class_far_less_likely_than_another_keeps_its_mass():
    """Logits of a confident network: a class 2,000 nats below another is not lost."""

    class Confident:
        mask, vocabulary = 3, 3

        def log_p(self, context, where):
            return torch.tensor([[0.0, -2000.0, -2001.0]]).expand(int(where.sum()), 3)

    only = minimal_form(np.arange(3), np.array([[-1, 0, 0]]), 0, np.array([True]))
    u = torch.full((1, 1, 4), 0.5, dtype=torch.float64)
    masses = class_masses(Confident(), torch.zeros(1), torch.full((1, 4), 3), RowConstraints([Constraint(only)]), u)
    assert masses.mass[0, :, 1] == pytest.approx(-2000 + math.log1p(math.exp(-1)))
    assert masses.at(np.ones((1, 1, 4), dtype=np.int64))[0].tolist() == [[[1, 1, 1, 1]]]


def test_what_is_not_a_number_is_seen_in_log_z():
    class NotANumber(Marginals):
        def log_p(self, context, where):
            return super().log_p(context, where) * torch.nan

    xt = torch.full((1, 4), 3)
    context = DENOISER.read(xt, torch.ones(1, dtype=torch.float64))
    u = torch.full((1, 1, 4), 0.5, dtype=torch.float64)
    whole = run_to_end(constrained_posterior(NotANumber(WORLD), context, xt, RowConstraints([Constraint(NO_TWO)]), u))
    assert whole.log_z.isnan().all()
    whole.draw(u)
