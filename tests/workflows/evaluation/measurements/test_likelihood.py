"""How often a bound is repeated, and how many calls its sampler is expected to make."""

import math

import pytest
import torch

from edlm.likelihood.estimate import Estimate
from edlm.likelihood.exact_order import FIXED_ORDER
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import MostCertain, Remasking
from edlm.schedule import Cosine, LogLinear
from tests.worlds import Constant, Marginals, world
from workflows.evaluation.measurements.likelihood import MOST_REPEATS, expected_calls, tightened

DENSE = world("dense", seed=1)


def test_repeats_are_doubled_until_a_doubling_no_longer_pays():
    asked = []

    def bound(repeats: int) -> Estimate:
        asked.append(repeats)
        return Estimate(torch.tensor([10.0, 12.0]) + 8.0 / repeats, 1)

    estimate, repeats, gained = tightened(bound, 1, 0.2, length=2)
    # Halves of what is left: 8 / R over 2 tokens gains 2, 1, 0.5, 0.25, 0.125.
    assert asked == [1, 2, 4, 8, 16, 32]
    assert (repeats, gained) == (32, pytest.approx(0.125))
    assert estimate.mean == pytest.approx(11.25)
    assert tightened(bound, 3, None, length=2)[1:] == (3, None)
    assert tightened(lambda r: Estimate(torch.tensor([-float(r)]), 1), 1, 1e-9, length=1)[1] == MOST_REPEATS


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(steps=4),
        Sampler(steps=5, candidates=3, window=(0.0, 0.6)),
        Sampler(steps=4, unmasking=MostCertain()),
        Sampler(steps=4, candidates=2, unmasking=Remasking(share=0.8)),
    ],
)
def test_the_calls_that_are_expected_are_the_mean_of_those_that_are_made(schedule, sampler, block):
    n, steps = 4000, []
    energy = Constant(0.0, whole_sequence=False, block=block)
    sampler.sample(DENSE.canvas(n), Marginals(DENSE), energy, schedule, torch.arange(n), on_step=steps.append)
    expected = expected_calls(sampler, schedule, DENSE.length, energy)
    for name in ("denoiser_calls", "energy_calls"):
        made = torch.stack([getattr(step, name) for step in steps]).sum(0).double()
        assert abs(made.mean().item() - expected[name]) < 4 * made.std().item() / math.sqrt(n) + 1e-9
    assert expected_calls(sampler, schedule, DENSE.length, None)["energy_calls"] == 0


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize(
    "sampler",
    [Sampler(steps=3, candidates=2, unmasking=FIXED_ORDER), Sampler(steps=7, unmasking=FIXED_ORDER),
     Sampler(steps=2, candidates=2, window=(0.0, 0.5), unmasking=FIXED_ORDER)],
)  # fmt: skip
def test_with_fixed_counts_the_calls_are_known(schedule, sampler):
    steps = []
    energy = Constant(0.0, whole_sequence=False)
    sampler.sample(DENSE.canvas(50), Marginals(DENSE), energy, schedule, torch.arange(50), on_step=steps.append)
    expected = expected_calls(sampler, schedule, DENSE.length, energy)
    for name in ("denoiser_calls", "energy_calls"):
        made = torch.stack([getattr(step, name) for step in steps]).sum(0)
        assert made.tolist() == [expected[name]] * 50


def test_with_fixed_counts_pairs_within_blocks_are_those_of_positions_chosen_alike():
    sampler, pairs = Sampler(steps=2, candidates=2, unmasking=FIXED_ORDER), Constant(0.0, False, block=2)
    expected = expected_calls(sampler, LogLinear(), 4, pairs)["energy_calls"]
    assert expected == pytest.approx(2 * 2 * 2 / 6)  # two of six choices of two positions share a block of two
