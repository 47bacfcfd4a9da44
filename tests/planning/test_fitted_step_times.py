"""A fitted grid is the cheapest of all grids, and what it promises is what the bound gives."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.interfaces import Model
from edlm.likelihood.bounds import sampler_bound
from edlm.planning.fitted_step_times import best_grid, step_costs
from edlm.sampling.sampler import Sampler
from edlm.schedule import Cosine, LogLinear
from tests.counting import chi_square
from tests.enumeration import sampler_distribution
from tests.sampling.test_sampler_distribution import DENSE, FAR, N, counts, denoiser
from tests.worlds import Residual

X0 = DENSE.texts[torch.multinomial(DENSE.p, 200, replacement=True, generator=torch.Generator().manual_seed(0))]
STEP = Residual(DENSE, whole_sequence=False)


@settings(deadline=None)
@given(points=st.integers(1, 6), seed=st.integers(0, 999), data=st.data())
def test_no_grid_over_the_same_times_is_cheaper(points, seed, data):
    steps = data.draw(st.integers(1, points))
    costs = torch.rand(points + 1, points + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    costs = torch.where(torch.ones_like(costs, dtype=torch.bool).tril(diagonal=-1), costs, torch.inf)
    every = [(0, *inner, points) for inner in itertools.combinations(range(1, points), steps - 1)]
    prices = [sum(costs[b, a].item() for a, b in itertools.pairwise(grid)) for grid in every]
    times, nats = best_grid(costs, steps)
    assert nats == pytest.approx(min(prices))
    assert times == tuple(i / points for i in every[prices.index(min(prices))])


@pytest.mark.parametrize("energy", [None, STEP])
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
def test_the_cost_of_a_grid_is_the_sum_of_its_steps(energy, schedule):
    sampler = Sampler(steps=4, candidates=1 if energy is None else 3)
    costs = step_costs(X0, Model(denoiser(DENSE), energy, schedule), sampler, points=4, seed=3, draws=2)
    bound = sampler_bound(X0, denoiser(DENSE), energy, schedule, sampler, seed=3, draws=2)
    assert sum(costs[i, i - 1].item() for i in range(1, 5)) == pytest.approx(bound.mean)


@settings(deadline=None, max_examples=5)
@given(st.sampled_from([2, 3]))
def test_a_fitted_grid_is_no_worse_than_equal_steps_on_what_it_was_fitted_on(steps):
    model = Model(denoiser(DENSE), STEP, LogLinear())
    costs = step_costs(X0, model, Sampler(steps=1, candidates=3), 12, seed=0, draws=1)
    times, nats = best_grid(costs, steps)
    equal = [12 * i // steps for i in range(steps + 1)]
    assert nats <= sum(costs[b, a].item() for a, b in itertools.pairwise(equal)) + 1e-9
    Sampler(steps=steps, grid=times)  # and the sampler takes it


@pytest.mark.parametrize("energy", [None, STEP])
def test_texts_on_another_grid_follow_its_distribution(energy):
    sampler = Sampler(steps=2, candidates=1 if energy is None else 3, grid=(0.0, 0.05, 1.0))
    texts = sampler.sample(DENSE.canvas(N), denoiser(DENSE), energy, LogLinear(), torch.arange(N))
    distribution = sampler_distribution(DENSE, denoiser(DENSE), energy, sampler, LogLinear(), DENSE.canvas(1)[0])
    assert chi_square(counts(DENSE, texts), distribution) < FAR
    equal = Sampler(steps=2, candidates=sampler.candidates)
    other = sampler_distribution(DENSE, denoiser(DENSE), energy, equal, LogLinear(), DENSE.canvas(1)[0])
    assert chi_square(counts(DENSE, texts), other) > FAR + 1


@pytest.mark.parametrize("grid", [(0.0, 1.0), (0.0, 0.7, 0.5, 1.0), (0.1, 0.5, 0.7, 1.0), (0.0, 0.2, 0.5, 0.9)])
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(ValueError, match="4 ascending times from 0 to 1"):
        Sampler(steps=3, grid=grid)


def test_more_steps_than_times_are_refused():
    with pytest.raises(ValueError, match="1 to 3, the number of measured times; got 4"):
        best_grid(torch.zeros(4, 4, dtype=torch.float64), 4)
