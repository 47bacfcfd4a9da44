"""A plan is the best of all plans, its steps have their own distributions, and its bound is the sum of theirs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.likelihood.bounds import sampler_bound
from edlm.planning.compute_budget import PlannedSampler, StepChoice, best_plan, planned_bound, step_nats
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain
from edlm.schedule import LogLinear
from tests.counting import chi_square
from tests.enumeration import Step, step_distribution
from tests.sampling.test_sampler_distribution import DENSE, FAR, N, counts, denoiser
from tests.worlds import Conditional, Residual

ENERGIES = {
    "whole": Residual(DENSE, whole_sequence=False),
    "pairs": Residual(DENSE, False, block=2),
    "exact": Conditional(DENSE),
}
PLAIN, WHOLE, PAIRS, EXACT = StepChoice(), StepChoice("whole", 3), StepChoice("pairs", 2), StepChoice("exact", 0)
X0 = DENSE.texts[torch.multinomial(DENSE.p, 100, replacement=True, generator=torch.Generator().manual_seed(0))]
instances = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9999), st.integers(4, 30))


@settings(deadline=None, max_examples=60)
@given(instances)
def test_no_plan_within_the_budget_gains_more(instance):
    steps, choices, seed, budget = instance
    generator = torch.Generator().manual_seed(seed)
    gains = torch.randn(steps, choices, dtype=torch.float64, generator=generator)
    seconds = torch.randint(1, 9, (steps, choices), generator=generator).double()
    every = [
        (sum(gains[i, c].item() for i, c in enumerate(plan)), plan)
        for plan in itertools.product(range(choices), repeat=steps)
        if sum(seconds[i, c].item() for i, c in enumerate(plan)) <= budget
    ]
    if not every:
        with pytest.raises(ValueError, match=f"a budget of {budget} is too small"):
            best_plan(gains, seconds, budget)
        return
    left = budget - int(seconds.min(dim=1).values.sum())
    actual = best_plan(gains, seconds, budget, ticks=max(left, 1))  # of a second each: nothing is rounded
    assert sum(seconds[i, c].item() for i, c in enumerate(actual)) <= budget
    assert sum(gains[i, c].item() for i, c in enumerate(actual)) == pytest.approx(max(every)[0])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 9999), factor=st.floats(1.0, 3.0), ticks=st.sampled_from([20, None]))
def test_seconds_that_are_no_whole_ticks_never_exceed_the_budget(seed, factor, ticks):
    generator = torch.Generator().manual_seed(seed)
    gains, seconds = torch.rand(2, 6, 5, dtype=torch.float64, generator=generator)
    seconds += 0.01
    budget = factor * seconds.min(dim=1).values.sum().item() * 1.01
    actual = best_plan(gains, seconds, budget, ticks)
    assert seconds[torch.arange(6), torch.tensor(actual)].sum().item() <= budget
    more = best_plan(gains, seconds, 2 * budget, ticks)
    total = [gains[torch.arange(6), torch.tensor(plan)].sum().item() for plan in (actual, more)]
    assert total[1] >= total[0] - 1e-9


@pytest.mark.parametrize(("steps", "factor"), [(64, 1.0), (64, 1.01), (256, 1.05), (1024, 1.25)])
def test_no_budget_is_too_small_because_seconds_are_rounded(steps, factor):
    """Each step may be plain or gain 1 for twice the seconds, so the best plan is known."""
    seconds = torch.tensor([1.4963, 2 * 1.4963], dtype=torch.float64).repeat(steps, 1)
    gains = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(steps, 1)
    budget, affordable = factor * seconds[:, 0].sum().item(), int((factor - 1) * steps)
    plan = best_plan(gains, seconds, budget)
    assert seconds[torch.arange(steps), torch.tensor(plan)].sum().item() <= budget * (1 + 1e-9)
    assert 0.99 * affordable - 1 <= sum(plan) <= affordable


@pytest.mark.parametrize("plan", [(WHOLE, PLAIN, PAIRS), (EXACT, WHOLE, PLAIN), (PLAIN, PLAIN, EXACT)])
def test_every_step_of_a_plan_follows_its_own_distribution(plan):
    sampler = Sampler(steps=3)
    texts = PlannedSampler(sampler, plan).sample(
        DENSE.canvas(2 * N), denoiser(DENSE), ENERGIES, LogLinear(), torch.arange(2 * N)
    )
    assert chi_square(counts(DENSE, texts), planned_distribution(sampler, plan)) < FAR
    if plan != plan[::-1]:
        assert (planned_distribution(sampler, plan) - planned_distribution(sampler, plan[::-1])).abs().max() > 1e-3


def planned_distribution(sampler: Sampler, plan: tuple[StepChoice, ...]) -> torch.Tensor:
    """By enumeration, the distributions of the steps one after the other."""
    distributions = {tuple(DENSE.canvas(1)[0].tolist()): 1.0}
    for i, choice in zip(range(sampler.steps, 0, -1), plan, strict=True):
        energy = None if choice.energy is None else ENERGIES[choice.energy]
        step, after = Step(DENSE, denoiser(DENSE), energy, choice.candidates), {}
        for xt, weight in distributions.items():
            t, s = i / sampler.steps, (i - 1) / sampler.steps
            for xs, probability in step_distribution(step, torch.tensor(xt), t, s, LogLinear()).items():
                after[xs] = after.get(xs, 0.0) + weight * probability
        distributions = after
    return torch.tensor([distributions.get(tuple(text), 0.0) for text in DENSE.texts.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("choice", [PLAIN, WHOLE, PAIRS, EXACT])
@pytest.mark.parametrize("sampler", [Sampler(steps=4), Sampler(steps=3, unmasking=MostCertain(), window=(0.0, 0.7))])
def test_a_plan_of_one_choice_is_that_sampler_in_texts_and_in_bound(choice, sampler):
    planned = PlannedSampler(sampler, (choice,) * sampler.steps)
    how, energy = choice.sampler_of(sampler), choice.energy_of(ENERGIES)
    texts = planned.sample(DENSE.canvas(50), denoiser(DENSE), ENERGIES, LogLinear(), torch.arange(50))
    same = how.sample(DENSE.canvas(50), denoiser(DENSE), energy, LogLinear(), torch.arange(50))
    assert torch.equal(texts, same)
    bound = planned_bound(X0, denoiser(DENSE), ENERGIES, LogLinear(), planned, seed=1, draws=2)
    alone = sampler_bound(X0, denoiser(DENSE), energy, LogLinear(), how, seed=1, draws=2)
    torch.testing.assert_close(bound.values, alone.values)


def test_a_plan_with_a_whole_sequence_energy_has_no_bound_and_is_named():
    planned = PlannedSampler(Sampler(steps=2), (PLAIN, StepChoice("drafts", 3)))
    energies = {"drafts": Residual(DENSE, whole_sequence=True)}
    with pytest.raises(ValueError, match="energy 'drafts', which scores whole sequences"):
        planned_bound(X0, denoiser(DENSE), energies, LogLinear(), planned, seed=1, draws=1)


def test_what_a_plan_promises_is_what_its_bound_gives():
    sampler, choices = Sampler(steps=4), [PLAIN, WHOLE, PAIRS, EXACT]
    reader, schedule = denoiser(DENSE), LogLinear()
    nats = step_nats(X0, reader, ENERGIES, schedule, sampler, [(c,) * 4 for c in choices], seed=2, draws=1).mean(dim=2)
    gains = nats[:, :1] - nats
    assert bool((gains[:, 0] == 0).all())
    seconds = torch.tensor([1.0, 3.0, 2.0, 4.0], dtype=torch.float64).repeat(4, 1)
    plan = best_plan(gains, seconds, budget_seconds=8.0)
    planned = PlannedSampler(sampler, tuple(choices[c] for c in plan))
    bound = planned_bound(X0, reader, ENERGIES, schedule, planned, seed=2, draws=1)
    plain = sampler_bound(X0, reader, None, schedule, sampler, seed=2, draws=1)
    promised = sum(gains[i, c].item() for i, c in enumerate(plan))
    assert plain.mean - bound.mean == pytest.approx(promised)
    assert 0 < promised < gains.max(dim=1).values.sum().item()


def test_a_step_without_a_choice_is_plain_and_a_choice_verifies_drafts_only_where_it_draws_exactly():
    assert StepChoice() == StepChoice(None, 1)
    sampler = Sampler(steps=3, candidates=0, speculative=True)
    for choice in (PLAIN, WHOLE, EXACT):
        how, energy = choice.sampler_of(sampler), choice.energy_of(ENERGIES)
        assert (how.candidates, how.speculative) == (choice.candidates, choice is EXACT)
        assert energy is (None if choice.energy is None else ENERGIES[choice.energy])


def test_a_plan_that_does_not_fit_its_sampler_is_refused():
    with pytest.raises(ValueError, match="one choice for each of 3 steps; got 2"):
        PlannedSampler(Sampler(steps=3), (PLAIN, PLAIN))


def test_a_plan_that_asks_for_an_energy_that_is_not_there_is_refused_by_its_name():
    planned = PlannedSampler(Sampler(steps=1), (StepChoice("unknown", 2),))
    with pytest.raises(ValueError, match="energy 'unknown'; there are: whole, pairs, exact"):
        planned.sample(DENSE.canvas(1), denoiser(DENSE), ENERGIES, LogLinear(), torch.arange(1))


def test_a_budget_that_no_plan_keeps_is_refused():
    with pytest.raises(ValueError, match="quickest plan takes 3 seconds; a budget of 2 is too small"):
        best_plan(torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64), 2.0)
