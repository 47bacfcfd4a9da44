"""The paper's estimator for `coar`: averaged over its masks it is the perplexity of the autoregressive model."""

import math

import pytest
import torch

from edlm import equations
from edlm.energies.whole_sequence import AutoregressiveEnergy, CarryOverEnergy
from edlm.likelihood.bounds import autoregressive_nll, nelbo
from edlm.likelihood.carry_over_autoregressive import carry_over_estimate, mean_masked_weight
from edlm.likelihood.estimate import difference
from edlm.likelihood.paper_estimator import paper_estimate
from edlm.schedule import Cosine, LogLinear, Polynomial
from tests.networks import autoregressive, denoiser
from tests.worlds import EnumeratedAutoregressive, Marginals, Residual, world

V, L, B = 5, 12, 12
SCHEDULES = [LogLinear(), Cosine(), Polynomial(exponent=2.0), Polynomial(exponent=0.5)]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{getattr(s, 'exponent', 1)}")


def networks():
    """A denoiser and an autoregressive model that know nothing of each other, and texts."""
    net, model = denoiser(V), autoregressive(V)
    x0 = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(0))
    return net, model, CarryOverEnergy(model, net.mask), x0


@schedules
def test_the_masks_of_every_schedule_have_total_weight_one_on_average(schedule):
    assert mean_masked_weight(schedule) == pytest.approx(1, abs=1e-9)


@schedules
def test_the_perplexity_of_coar_is_that_of_its_autoregressive_model_to_four_digits(schedule):
    net, model, energy, x0 = networks()
    paper, nll = carry_over_estimate(x0, net, energy, schedule), autoregressive_nll(x0, model)
    torch.testing.assert_close(paper.values, nll.values, atol=1e-4, rtol=0)
    assert f"{math.exp(paper.mean / L):.4g}" == f"{math.exp(nll.mean / L):.4g}"
    worse = nelbo(x0, net, schedule, seed=0, draws=8)
    assert abs(difference(worse, nll).mean) > 0.1  # the denoiser is another model: it does not show in the estimate


def test_the_bracket_is_a_sum_over_the_masked_positions_whatever_else_is_masked():
    """Which is what lets the masks be averaged position by position."""
    net, model, energy, x0 = networks()
    masked = torch.rand(B, L, generator=torch.Generator().manual_seed(1)) < 0.6
    xt, t = torch.where(masked, net.mask, x0), torch.full((B,), 0.6, dtype=torch.float64)
    context = net.read(xt, t)
    log_p = net.log_p_of(context, masked, x0).sum(dim=-1)
    e = energy(x0[:, None], xt, t, log_p[:, None, None], context)[:, 0, 0]
    bracket = equations.paper_integrand(log_p, e, torch.zeros(B), torch.ones(B))
    torch.testing.assert_close(bracket, -(model.log_p(x0) * masked).sum(dim=-1), atol=1e-4, rtol=0)


def test_with_log_z_known_noise_alone_parts_the_estimator_from_the_perplexity():
    net, model, energy, x0 = networks()
    many = x0.repeat(30, 1)
    drawn = paper_estimate(many, net, energy, LogLinear(), seed=1, draws=8, log_partition_draws=None)
    gap = difference(drawn, autoregressive_nll(many, model))
    assert gap.standard_error < 0.5
    assert abs(gap.mean) < 3 * gap.standard_error


def test_with_log_z_estimated_from_few_drafts_it_is_far_off():
    net, model, energy, x0 = networks()
    known, estimated = (
        paper_estimate(x0, net, energy, LogLinear(), seed=1, draws=8, log_partition_draws=draws) for draws in (None, 4)
    )
    gap = difference(estimated, known)
    assert gap.mean < -5 * gap.standard_error
    assert gap.mean < -0.2 * autoregressive_nll(x0, model).mean


def test_in_a_world_that_is_listed_the_expectation_is_the_entropy_and_not_a_bound_on_what_is_sampled():
    """With the exact autoregressive model `coar` reports the entropy, whatever its denoiser and so its sampler."""
    of = world("dense", seed=1)
    energy = CarryOverEnergy(EnumeratedAutoregressive(of), of.mask)  # pyright: ignore[reportArgumentType]
    for mix in (0.0, 0.9):
        actual = carry_over_estimate(of.texts, Marginals(of, mix), energy, LogLinear())
        assert (actual.values @ of.p).item() == pytest.approx(of.entropy, abs=1e-9)


def test_log_z_is_known_of_coar_alone():
    net, model, _, x0 = networks()
    ar = AutoregressiveEnergy(model)
    with pytest.raises(ValueError, match="log Z of AutoregressiveEnergy is not known"):
        paper_estimate(x0, net, ar, LogLinear(), seed=0, draws=1, log_partition_draws=None)
    with pytest.raises(ValueError, match="AutoregressiveEnergy is not additive over masks"):
        carry_over_estimate(x0, net, ar, LogLinear())  # pyright: ignore[reportArgumentType]
    of = world("dense", seed=1)
    with pytest.raises(ValueError, match="needs an energy of whole sequences"):
        paper_estimate(of.texts, Marginals(of), Residual(of, False), LogLinear(), 0, 1, None)
