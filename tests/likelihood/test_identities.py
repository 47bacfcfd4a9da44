"""The identities between the loss, the energies, the sampler and its bounds, in worlds that are listed whole."""

import itertools
import math

import pytest
import torch

from edlm import equations
from edlm.energies.whole_sequence import AutoregressiveEnergy, CarryOverEnergy
from edlm.interfaces import Model
from edlm.likelihood.bounds import nelbo, sampler_bound, step_nll
from edlm.likelihood.paper_estimator import paper_estimate
from edlm.sampling.sampler import Sampler
from edlm.schedule import Cosine, LogLinear, Polynomial
from tests.enumeration import Step, exact_bound, mean_step_nll, subsets
from tests.worlds import Constant, EnumeratedAutoregressive, Marginals, Residual, World, cartesian, world

DENSE = world("dense", seed=1)
MARKOV = world("markov", seed=0)
HIDDEN = world("hidden-markov", seed=6)
CHAIN = world("markov", length=4, seed=0)
WRONG = Marginals(DENSE, mix=0.1, drift=0.3)
schedules = pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Polynomial(exponent=2.0)])


def over(estimate, of: World, copies: int) -> tuple[float, float]:
    """Mean over the world, and its standard error, of an estimate on `copies` of every text."""
    values = estimate.values.view(copies, -1) @ of.p
    return values.mean().item(), (values.std() / math.sqrt(copies)).item()


def canvases(of: World) -> list[torch.Tensor]:
    """Every partly masked text that can come up, with something masked."""
    possible = {
        tuple(torch.where(masked, of.mask, x0).tolist())
        for x0, p in zip(of.texts, of.p.tolist(), strict=True)
        if p > 0
        for masked in subsets(torch.ones(of.length, dtype=torch.bool))[1:]
    }
    return [torch.tensor(xt) for xt in sorted(possible)]


@schedules
@pytest.mark.parametrize("of", [DENSE, MARKOV, HIDDEN], ids=["dense", "markov", "hidden"])
def test_with_perfect_marginals_the_nelbo_is_the_entropy_under_every_schedule(of, schedule):
    copies = 300
    actual, error = over(nelbo(of.texts.repeat(copies, 1), Marginals(of), schedule, seed=3, draws=16), of, copies)
    assert error < 0.02
    assert abs(actual - of.entropy) < 4 * error


def test_with_imperfect_marginals_the_nelbo_lies_above_the_entropy():
    copies = 300
    actual, error = over(nelbo(DENSE.texts.repeat(copies, 1), WRONG, LogLinear(), seed=3, draws=16), DENSE, copies)
    assert actual > DENSE.entropy + 4 * error


@pytest.mark.parametrize("of", [DENSE, MARKOV], ids=["dense", "markov"])
def test_the_factorised_bound_falls_in_the_number_of_steps_to_the_entropy(of):
    plain = Step(of, Marginals(of), None, candidates=1)
    bounds = [exact_bound(plain, steps, LogLinear()) for steps in (1, 2, 4, 8, 16, 64)]
    assert all(more > fewer + 1e-6 for more, fewer in itertools.pairwise(bounds))
    assert 0 < bounds[-1] - of.entropy < 0.05 * (bounds[0] - of.entropy)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("drafts", [True, False], ids=["whole drafts", "step"])
def test_with_the_exact_energy_the_bound_comes_to_the_entropy_as_k_grows(drafts, steps):
    energy, copies = Residual(DENSE, whole_sequence=drafts), 8
    x0 = DENSE.texts.repeat(copies, 1)
    actual = [
        over(sampler_bound(x0, WRONG, energy, LogLinear(), Sampler(steps=steps, candidates=k), 5, 2), DENSE, copies)[0]
        for k in (2, 1024)
    ]
    last = Step(DENSE, WRONG, energy, candidates=0)
    # One token is never resampled, so with an imperfect denoiser the limit lies above the entropy by those steps.
    alone = exact_bound(last, steps, LogLinear(), _alone) if steps > 1 else 0.0
    # Whole drafts with one repeat stay above: what is thrown away is noise in the weight.
    if steps == 1 or not drafts:
        assert abs(actual[1] - DENSE.entropy - alone) < 0.06
    assert actual[1] > DENSE.entropy - 0.02


def _alone(step: Step, x0, xt, t, unmasked) -> float:
    """What a step that unmasks one token loses to the exact posterior."""
    if unmasked.sum() != 1:
        return 0.0
    context = step.denoiser.read(xt[None], torch.tensor([t], dtype=torch.float64))
    log_p = context[0][unmasked, x0[unmasked]].item()
    return -log_p + step.world.log_conditional(torch.where(unmasked, x0, xt), xt).item()


def test_carry_over_has_z_one_whatever_the_two_models():
    energy = CarryOverEnergy(EnumeratedAutoregressive(MARKOV), DENSE.mask)  # pyright: ignore[reportArgumentType]
    for xt in canvases(DENSE):
        _, log_p, energies = Step(DENSE, WRONG, energy, 1).drafts(xt, 0.4, xt == DENSE.mask)
        assert (log_p.sum(dim=1) - energies[:, 0]).logsumexp(dim=0).item() == pytest.approx(0, abs=1e-9)


def test_with_the_exact_autoregressive_model_the_distribution_is_the_true_posterior():
    energy = AutoregressiveEnergy(EnumeratedAutoregressive(DENSE))  # pyright: ignore[reportArgumentType]
    for xt in canvases(DENSE):
        x, log_p, energies = Step(DENSE, WRONG, energy, 1).drafts(xt, 0.4, xt == DENSE.mask)
        distribution = (log_p.sum(dim=1) - energies[:, 0]).softmax(dim=0)
        torch.testing.assert_close(distribution, DENSE.log_conditional(x, xt).exp())


@pytest.mark.parametrize("negatives", [1, 2])
@pytest.mark.parametrize("loss", [equations.nce_binary, equations.nce_ranking])
@pytest.mark.parametrize("drafts", [True, False], ids=["whole drafts", "step"])
def test_the_optimum_of_nce_is_the_log_density_ratio(loss, negatives, drafts):
    for xt in canvases(DENSE)[::5]:
        new = (xt == DENSE.mask) if drafts else subsets(xt == DENSE.mask)[-1]
        x, log_p, best = Step(DENSE, WRONG, Residual(DENSE, whole_sequence=drafts), 1).drafts(xt, 0.4, new)
        p, q = log_p.sum(dim=1).exp(), DENSE.log_conditional(x, xt).exp()

        def expected(energy: torch.Tensor, p=p, q=q) -> torch.Tensor:
            tuples = cartesian(len(p), negatives + 1)
            weight = q[tuples[:, 0]] * p[tuples[:, 1:]].prod(dim=1)
            values = loss(energy[tuples[:, 0]][:, None], energy[tuples[:, 1:]][..., None])[:, 0]
            return (weight * values).sum()

        energy = best[:, 0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(expected(energy), energy)
        assert gradient.abs().max() < 1e-9
        flipped = (-best[:, 0]).requires_grad_()
        if best[:, 0].std() > 0.1:
            assert torch.autograd.grad(expected(flipped), flipped)[0].abs().max() > 1e-3


@pytest.mark.parametrize("energy", [Residual(DENSE, whole_sequence=False), Constant(0.7, whole_sequence=False)])
@pytest.mark.parametrize("k", [2, 3])
def test_log_k_minus_the_ranking_loss_is_what_the_bound_gains(energy, k):
    for xt in canvases(DENSE)[::4]:
        for new in subsets(xt == DENSE.mask)[1:]:
            if new.sum() < 2:
                continue
            step = Step(DENSE, WRONG, energy, k)
            x, log_p, energies = step.drafts(xt, 0.4, new)
            p, q = log_p.sum(dim=1).exp(), DENSE.log_conditional(x, xt).exp()
            tuples = cartesian(len(x), k)
            weight = q[tuples[:, 0]] * p[tuples[:, 1:]].prod(dim=1)
            e = energies[:, 0][tuples][..., None]
            gain = math.log(k) - (weight * equations.nce_ranking(e[:, 0], e[:, 1:])[:, 0]).sum().item()
            plain = -(q * log_p.sum(dim=1)).sum().item()
            resampled = sum(
                chance * mean_step_nll(step, torch.where(new, text, xt), xt, 0.4, new)
                for chance, text in zip(q.tolist(), x, strict=True)
                if chance > 0
            )
            assert plain - resampled == pytest.approx(gain, abs=1e-9)


def test_with_one_step_whole_drafts_and_step_energies_are_the_same():
    x0, canvas = DENSE.texts, DENSE.canvas(len(DENSE.texts))
    t, everything = torch.ones(len(x0), dtype=torch.float64), torch.ones_like(x0, dtype=torch.bool)
    u = torch.rand(len(x0), 2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drafts, step = (Residual(DENSE, whole_sequence=whole) for whole in (True, False))
    weighed_whole = step_nll(x0, canvas, everything, t, Model(WRONG, drafts, LogLinear()), 4, 1.0, u)
    assert torch.equal(weighed_whole, step_nll(x0, canvas, everything, t, Model(WRONG, step, LogLinear()), 4, 1.0, u))


def test_an_energy_of_zero_changes_no_bound():
    x0 = DENSE.texts.repeat(4, 1)
    for steps in (1, 2, 4):
        plain = sampler_bound(x0, WRONG, None, LogLinear(), Sampler(steps=steps), 7, 2)
        for drafts in (True, False):
            zero = Constant(0.0, whole_sequence=drafts)
            actual = sampler_bound(x0, WRONG, zero, LogLinear(), Sampler(steps=steps, candidates=8), 7, 2)
            torch.testing.assert_close(actual.values, plain.values)


def test_the_papers_estimator_is_no_bound_where_tokens_agree():
    """Three tokens that always agree, two values, perfect models: it says 0.231 where the entropy is 0.693."""
    agree = world("agree", vocabulary=2)
    x0 = agree.texts[agree.p > 0].repeat(2000, 1)
    exact, energy = Marginals(agree), Residual(agree, whole_sequence=True)
    actual = paper_estimate(x0, exact, energy, LogLinear(), seed=1, draws=4, log_partition_draws=64)
    bound = nelbo(x0, exact, LogLinear(), seed=1, draws=4)
    assert agree.entropy == pytest.approx(math.log(2))
    assert abs(actual.mean - math.log(2) / 3) < 4 * actual.standard_error + 0.01
    assert abs(bound.mean - math.log(2)) < 4 * bound.standard_error
    assert actual.mean + 4 * actual.standard_error < 0.5 * agree.entropy


def test_confident_pairs_keep_their_gradient():
    """log(sigmoid + 1e-8), as published, is flat where the energy is confidently wrong."""
    data = torch.tensor([[30.0]], requires_grad=True)
    noise = torch.tensor([[[-30.0]]], requires_grad=True)
    equations.nce_binary(data, noise).sum().backward()
    assert data.grad is not None
    assert noise.grad is not None
    assert data.grad.item() == pytest.approx(1.0)
    assert noise.grad.item() == pytest.approx(-1.0)
