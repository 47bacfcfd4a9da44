import math

import pytest
import torch

from edlm.exact.dirichlet import dirichlet

N = 20_000


def test_a_draw_is_a_distribution_and_a_function_of_seed_and_part_alone():
    p = dirichlet(3, 1, 5, 4, 0.4)
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(p, dirichlet(3, 1, 5, 4, 0.4))
    assert torch.equal(p[:2], dirichlet(3, 1, 2, 4, 0.4))
    assert not torch.equal(p, dirichlet(4, 1, 5, 4, 0.4))
    assert not torch.equal(p, dirichlet(3, 2, 5, 4, 0.4))


@pytest.mark.parametrize(
    ("concentration", "cdf"),
    [(1.0, lambda x: x), (0.5, lambda x: 2 / math.pi * torch.asin(x.sqrt())), (2.0, lambda x: x**2 * (3 - 2 * x))],
)
def test_of_two_parts_one_follows_the_beta_distribution(concentration, cdf):
    """Where the beta distribution's distribution function is elementary; Kolmogorov and Smirnov, significance 1e-4."""
    x = dirichlet(0, 0, N, 2, concentration)[:, 0].sort().values
    grid = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    assert (cdf(x) - grid).abs().max() < 2.2 / math.sqrt(N)


@pytest.mark.parametrize("concentration", [0.1, 0.4, 3.0])
def test_the_mean_entropy_of_many_parts_is_the_known_one(concentration):
    p, size = dirichlet(1, 0, N, 8, concentration), 8
    entropy = -torch.xlogy(p, p).sum(dim=-1)
    known = torch.tensor([size * concentration + 1, concentration + 1], dtype=torch.float64).digamma()
    assert abs(entropy.mean() - (known[0] - known[1])) < 4 * entropy.std() / math.sqrt(N)
    assert (p.mean(dim=0) - 1 / size).abs().max() < 4 * p.std() / math.sqrt(N)


def test_a_tiny_concentration_leaves_one_part_and_no_nan():
    p = dirichlet(0, 0, 200, 5, 1e-4)
    assert bool((p.max(dim=-1).values > 0.99).float().mean() > 0.9)
    torch.testing.assert_close(p.sum(dim=-1), torch.ones(200, dtype=torch.float64))
