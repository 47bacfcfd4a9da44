"""The bound with a constraint: exact for k = 1, on average what the listed draws give, and above -log p."""

import itertools
import math
from functools import cache

import pytest
import torch

from edlm.config import ConfigurationError
from edlm.constraints.constraint import Constraint, RowConstraints
from edlm.interfaces import Model
from edlm.likelihood.bounds import sampler_bound, step_bound
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.constraints.automata import NO_TWO, SUM, THREE_STATES, inside
from tests.enumeration import Step, exact_bound, sampler_distribution
from tests.sampling.test_constrained import ENERGIES, READER, WORLD
from tests.worlds import World

ACCEPTED = inside(THREE_STATES, WORLD.texts)
GIVEN = World(WORLD.texts, torch.where(ACCEPTED, WORLD.p, 0.0) / WORLD.p[ACCEPTED].sum(), 3)  # q(. | C)


def accepts(x: torch.Tensor) -> torch.Tensor:
    return inside(THREE_STATES, x)


def expected_step_nll(step: Step, x0, xt, t: float, unmasked) -> float:
    """E[-log p_theta - log(k v_1 / sum v)] of a step with two candidates and one repeat, over every pair of draws."""
    x, p, log_share = weighed_pairs(step, tuple(xt.tolist()), t, tuple(unmasked.tolist()))
    holds = (~unmasked | (x == x0)).all(dim=1)
    nll = -math.log(p[holds].sum().item())
    if step.energy is None or unmasked.sum() == 1:
        return nll
    return nll - (p[holds] @ log_share[holds] / p[holds].sum()).item()


@cache
def weighed_pairs(step: Step, xt: tuple[int, ...], t: float, unmasked: tuple[bool, ...]) -> tuple[torch.Tensor, ...]:
    """Every draw of a step [n l], its probability [n], and the mean over a second draw of log(k v_1 / sum v) [n]."""
    x, p, energy = step.weighed(torch.tensor(xt), t, torch.tensor(unmasked))
    log_v = -energy
    return x, p, (math.log(2) + log_v[:, None] - torch.logaddexp(log_v[:, None], log_v[None])) @ p


@pytest.mark.parametrize(
    ("name", "steps"), [each for each in itertools.product(ENERGIES, (1, 2, 4)) if each != ("residual", 4)]
)
def test_the_bound_is_what_the_listed_draws_give_and_lies_above_the_truth(name, steps):
    energy, k = ENERGIES[name], 1 if ENERGIES[name] is None else 2
    step, sampler = Step(GIVEN, READER, energy, k, accepts=accepts), Sampler(steps=steps, candidates=k)
    expected = exact_bound(step, steps, LogLinear(), expected_step_nll)
    copies = 12
    x0 = WORLD.texts[ACCEPTED].repeat(copies, 1)
    estimate = sampler_bound(
        x0, READER, energy, LogLinear(), sampler, 3, 4, constraints=[Constraint(THREE_STATES)] * len(x0)
    )
    by_copy = estimate.values.view(copies, -1) @ GIVEN.p[ACCEPTED]
    assert abs(by_copy.mean().item() - expected) < 4.5 * by_copy.std().item() / math.sqrt(copies) + 1e-9
    distribution = sampler_distribution(WORLD, READER, energy, sampler, LogLinear(), WORLD.canvas(1)[0], accepts)
    assert expected >= -(GIVEN.p * distribution.clamp(min=1e-300).log()).sum().item() - 1e-9


@pytest.mark.parametrize("automaton", [THREE_STATES, NO_TWO, SUM])
def test_without_an_energy_the_bound_in_one_step_is_log_p_given_the_constraint_exactly(automaton):
    accepted = inside(automaton, WORLD.texts)
    x0 = WORLD.texts[accepted]
    bound = sampler_bound(
        x0, READER, None, LogLinear(), Sampler(steps=1), 0, 1, constraints=[Constraint(automaton)] * len(x0)
    )
    table = READER.read(WORLD.canvas(1), torch.ones(1, dtype=torch.float64))[0]
    p = table.gather(-1, WORLD.texts.T).sum(dim=0).exp()[accepted]
    torch.testing.assert_close(bound.values, -(p / p.sum()).log(), rtol=0, atol=1e-12)


def test_many_repeats_bring_a_step_to_the_truth():
    xt, t, unmasked = torch.tensor([3, 3, 0, 3]), 0.7, torch.tensor([True, False, False, True])
    for name in ("whole drafts", "step", "residual"):
        step = Step(WORLD, READER, ENERGIES[name], 2, accepts=accepts)
        x0 = next(x for x in WORLD.texts[ACCEPTED] if x[2] == 0)
        model = Model(READER, ENERGIES[name], LogLinear())
        actual = step_bound(
            x0[None], xt[None], unmasked[None], t, 1, model, Sampler(steps=2, candidates=2), 0, 0, 6000,
            constraints=RowConstraints([Constraint(THREE_STATES)]),
        )  # fmt: skip
        assert actual.item() == pytest.approx(step.nll(x0, xt, t, unmasked), abs=0.03)


def test_rows_with_and_without_a_constraint_have_the_bounds_that_they_have_alone():
    x0 = torch.stack([WORLD.texts[inside(each, WORLD.texts)][5] for each in (THREE_STATES, NO_TWO, SUM, SUM)])
    constraints = [Constraint(THREE_STATES), None, Constraint(NO_TWO), Constraint(SUM)]
    x0[2] = WORLD.texts[inside(NO_TWO, WORLD.texts)][7]
    for name, energy in ENERGIES.items():
        model, sampler = Model(READER, energy, LogLinear()), Sampler(steps=2, candidates=2)
        xt = torch.where(torch.tensor([True, True, False, True]), 3, x0)
        unmasked = torch.tensor([[True, True, False, False]]).repeat(4, 1)
        arguments = (0.5, 1, model, sampler, 3, 0)
        together = step_bound(x0, xt, unmasked, *arguments, constraints=RowConstraints(constraints))
        for row, constraint in enumerate(constraints):
            of_row = None if constraint is None else RowConstraints([constraint])
            rows = slice(row, row + 1)
            alone = step_bound(x0[rows], xt[rows], unmasked[rows], *arguments, first_row=row, constraints=of_row)
            assert torch.equal(alone, together[rows]), name


def test_known_positions_are_given_and_a_text_outside_has_no_probability():
    known = torch.tensor([True, False, False, True])
    x0 = WORLD.texts[~ACCEPTED][:1]
    canvas_ok = any(
        THREE_STATES.accepts([x0[0, 0].item(), *middle, x0[0, 3].item()])
        for middle in itertools.product(range(3), repeat=2)
    )
    assert canvas_ok
    for energy in ENERGIES.values():
        bound = sampler_bound(
            x0, READER, energy, LogLinear(), Sampler(steps=2, candidates=2), 0, 2, known=known[None],
            constraints=[Constraint(THREE_STATES)],
        )  # fmt: skip
        assert bound.values.item() == math.inf


def test_exact_draws_and_impossible_constraints_are_refused():
    x0 = WORLD.texts[:1]
    with pytest.raises(ConfigurationError, match="exact draws"):
        sampler_bound(
            x0, READER, ENERGIES["conditional"], LogLinear(), Sampler(steps=1, candidates=0), 0, 1,
            constraints=[Constraint(SUM)],
        )  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"no text of 4 tokens|contradicts|leave no text"):
        sampler_bound(
            x0, READER, None, LogLinear(), Sampler(steps=1), 0, 1, known=torch.ones_like(x0, dtype=torch.bool),
            constraints=[Constraint(THREE_STATES, later=0, state=THREE_STATES.after([1]))],
        )  # fmt: skip
