"""The race in float32 lowers the entropy of a long-tailed distribution, the more so the more steps; ours does not."""

import math

import pytest
import torch

from edlm.evaluation.race_entropy import entropy, race_entropy, raced
from edlm.schedule import LogLinear
from tests.networks import denoiser

ZIPF = 1 / torch.arange(1, 50_001, dtype=torch.float64)
ZIPF = ZIPF / ZIPF.sum()


def test_the_more_steps_the_less_of_a_long_tail_is_left():
    shares = torch.tensor([1.0, 1 / 16, 1 / 256], dtype=torch.float64)
    left = entropy(raced(ZIPF.expand(3, -1), shares))
    assert entropy(ZIPF) > left[0] > left[1] > left[2] > 0
    assert entropy(ZIPF) - left[2] > 0.5


def test_a_short_vocabulary_loses_nothing_that_shows():
    p = torch.full((27,), 1 / 27, dtype=torch.float64)
    assert entropy(raced(p, torch.tensor(1 / 16, dtype=torch.float64))).item() == pytest.approx(entropy(p).item())


def test_one_token_is_cut_off_as_its_own_race_cuts_it_off():
    """Relative to the token that has the rest; `test_published_sampler.py` plays the races themselves."""
    p = torch.tensor([3e-7, 1 - 3e-7], dtype=torch.float64)
    left = raced(p, torch.tensor(0.25, dtype=torch.float64))
    grain, q = 2.0**-24, 0.25 * 3e-7
    assert (left[0] / left[1]).item() == pytest.approx(grain / math.expm1(grain / q) / 0.25, rel=1e-4)


def test_the_exact_distribution_does_not_know_the_number_of_steps():
    x0 = torch.randint(5, (40, 12), generator=torch.Generator().manual_seed(0))
    rows = {steps: race_entropy(x0, denoiser(), LogLinear(), steps, seed=0) for steps in (64, 4096)}
    for exact, left in rows.values():
        assert exact.mean == pytest.approx(left.mean, abs=1e-3)  # five tokens: hardly anything is lost
        assert len(exact.values) == 40
    assert rows[64][0].mean == pytest.approx(rows[4096][0].mean, abs=0.02)
