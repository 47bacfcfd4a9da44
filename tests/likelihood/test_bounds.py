"""The estimates of likelihood are what they say: bounds lie above -log p_k, and meet it where they can."""

import itertools
import math

import pytest
import torch

from edlm import equations
from edlm.energies.whole_sequence import AutoregressiveEnergy, CarryOverEnergy
from edlm.interfaces import Model
from edlm.likelihood import bounds as likelihood
from edlm.likelihood.bounds import sampler_bound, step_nll
from edlm.likelihood.estimate import Estimate, difference
from edlm.likelihood.log_partition import log_partition
from edlm.likelihood.unmasking_paths import trajectory
from edlm.sampling.sampler import EXACT, Sampler
from edlm.sampling.unmasking import AtRandom, MostCertain, Remasking
from edlm.schedule import Cosine, LogLinear
from tests.enumeration import Step, every_draw, exact_bound, mean_step_nll, resampled, sampler_distribution, subsets
from tests.worlds import (
    Conditional,
    Constant,
    EnumeratedAutoregressive,
    Marginals,
    OnProposal,
    Residual,
    World,
    cartesian,
    world,
)

DENSE = world("dense", seed=1)
LONGER = world("markov", vocabulary=2, length=4, seed=2)
MODEL = EnumeratedAutoregressive(DENSE)
ENERGIES = {
    "whole drafts": (DENSE, Residual(DENSE, whole_sequence=True)),
    "step": (DENSE, Residual(DENSE, whole_sequence=False)),
    "step in blocks": (LONGER, Residual(LONGER, whole_sequence=False, block=2)),
    "conditional": (DENSE, Conditional(DENSE)),
    "ar": (DENSE, AutoregressiveEnergy(MODEL)),  # pyright: ignore[reportArgumentType]
    "coar": (DENSE, CarryOverEnergy(MODEL, DENSE.mask)),  # pyright: ignore[reportArgumentType]
}
energies = pytest.mark.parametrize("name", ENERGIES)


def reader(of: World) -> Marginals:
    return Marginals(of, mix=0.1, drift=0.3)


def weighted(estimate: Estimate, of: World, copies: int) -> tuple[float, float]:
    """Mean over the world, and its standard error, of an estimate on `copies` of every text."""
    values = estimate.values.view(copies, -1) @ of.p
    return values.mean().item(), (values.std() / math.sqrt(copies)).item()


@energies
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_estimate_of_a_step_lies_above_the_truth_whatever_is_unmasked(name, temperature):
    here, energy = ENERGIES[name]
    step = Step(here, reader(here), energy, candidates=2, temperature=temperature)
    gaps = []
    for x0, masked in itertools.product(here.texts[:: len(here.texts) // 3], subsets(torch.ones(here.length).bool())):
        xt = torch.where(masked, here.mask, x0)
        for unmasked in subsets(masked)[1:]:
            gaps.append(mean_step_nll(step, x0, xt, 0.5, unmasked) - step.nll(x0, xt, 0.5, unmasked))
            if unmasked.sum() == 1:  # one token needs no joint
                assert gaps[-1] == pytest.approx(0, abs=1e-9)
    assert min(gaps) > -1e-9
    assert max(gaps) > 1e-3


@pytest.mark.parametrize("candidates", [2, 3])
@pytest.mark.parametrize("drafts", [True, False])
def test_with_every_draw_among_its_repeats_the_estimate_is_the_truth(candidates, drafts):
    """Of a blank canvas of the world `agree` every token is equally likely, so a list of all draws is a fair one."""
    here = world("agree")
    step = Step(here, Marginals(here, mix=0.4), Residual(here, drafts), candidates)
    xt = here.canvas(1)[0]
    for unmasked, x0 in itertools.product(subsets(xt == here.mask)[1:], here.texts[[0, 13]]):
        u, weights = every_draw(step, xt, 1.0, unmasked)
        if len(u) > 3**7:
            continue
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(weights)))
        rows = (row[None] for row in (x0, xt, unmasked))
        t = torch.ones(1, dtype=torch.float64)
        actual = step_nll(*rows, t, Model(step.denoiser, step.energy, LogLinear()), candidates, 1.0, u[None])  # pyright: ignore
        assert actual.item() == pytest.approx(step.nll(x0, xt, 1.0, unmasked))


@pytest.mark.parametrize("name", ["whole drafts", "step", "ar"])
def test_repeats_bring_the_estimate_down_to_the_truth(name):
    here, energy = ENERGIES[name]
    rows, unmasked, x0 = 1500, torch.tensor([True, True, False]), torch.tensor([0, 1, 2])
    step = Step(here, reader(here), energy, candidates=3)
    xt, t = here.canvas(rows), torch.ones(rows, dtype=torch.float64)
    means, errors = [], []
    for repeats in (1, 4, 32):
        u = torch.rand(rows, repeats, 3, 3, generator=torch.Generator().manual_seed(repeats), dtype=torch.float64)
        many = x0.expand(rows, -1), xt, unmasked.expand(rows, -1)
        actual = step_nll(*many, t, Model(step.denoiser, energy, LogLinear()), 3, 1.0, u)
        means.append(actual.mean().item())
        errors.append((actual.std() / math.sqrt(rows)).item())
    truth = step.nll(x0, xt[0], 1.0, unmasked)
    assert abs(means[0] - mean_step_nll(step, x0, xt[0], 1.0, unmasked)) < 4 * errors[0]
    assert means[0] > means[1] > means[2] > truth - 4 * errors[2]
    assert means[2] - truth < 0.1 * (means[0] - truth) + 4 * errors[2]


@energies
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=["log-linear", "cosine"])
def test_the_bound_of_all_steps_is_the_sum_over_every_trajectory(name, schedule):
    here, energy = ENERGIES[name]
    copies, steps = 300, 2
    step = Step(here, reader(here), energy, candidates=2)
    x0 = here.texts.repeat(copies, 1)
    actual = sampler_bound(x0, step.denoiser, energy, schedule, Sampler(steps=steps, candidates=2), seed=5, draws=1)
    mean, error = weighted(actual, here, copies)
    assert error < 0.03
    assert abs(mean - exact_bound(step, steps, schedule, mean_step_nll)) < 4 * error
    assert mean > exact_bound(step, steps, schedule) - 4 * error


@pytest.mark.parametrize("steps", [1, 2])
def test_the_bound_of_a_residual_energy_is_that_of_candidates_from_its_proposal(steps):
    energy, copies = OnProposal(DENSE, world("dense", seed=5)), 150
    truth = exact_bound(Step(DENSE, reader(DENSE), energy, 3), steps, LogLinear())
    for repeats in (1, 64):
        actual = sampler_bound(
            DENSE.texts.repeat(copies, 1), reader(DENSE), energy, LogLinear(), Sampler(steps=steps, candidates=3),
            seed=3, draws=1, repeats=repeats,
        )  # fmt: skip
        mean, error = weighted(actual, DENSE, copies)
        assert error < 0.03
        assert mean > truth - 4 * error
    assert mean < truth + 4 * error + 0.02


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("how", ["no energy", "one candidate", "constant energy"])
def test_the_bound_of_plain_diffusion_is_the_factorised_one(steps, how):
    energy = {"no energy": None, "one candidate": ENERGIES["step"][1], "constant energy": Constant(3.0)}[how]
    sampler, copies = Sampler(steps=steps, candidates=3 if how == "constant energy" else 1), 400
    actual = sampler_bound(DENSE.texts.repeat(copies, 1), reader(DENSE), energy, LogLinear(), sampler, seed=1, draws=2)
    mean, error = weighted(actual, DENSE, copies)
    assert error < 0.02
    assert abs(mean - exact_bound(Step(DENSE, reader(DENSE), None, 1), steps, LogLinear())) < 4 * error + 1e-9


def test_outside_the_window_the_bound_is_that_of_plain_diffusion():
    energy, copies = Residual(DENSE, whole_sequence=False), 300
    x0 = DENSE.texts.repeat(copies, 1)

    def bound(k: int, window: tuple[float, float]) -> Estimate:
        sampler = Sampler(steps=2, candidates=k, window=window)
        return sampler_bound(x0, reader(DENSE), energy, LogLinear(), sampler, seed=1, draws=1)

    plain, both = bound(1, (0.0, 1.0)), bound(4, (0.0, 1.0))
    first, last = bound(4, (0.6, 1.0)), bound(4, (0.0, 0.5))
    # The estimates share their noise, and every step is in one of the two windows.
    torch.testing.assert_close(first.values + last.values, plain.values + both.values)
    assert not torch.equal(first.values, plain.values)
    assert not torch.equal(last.values, plain.values)
    assert torch.equal(bound(4, (0.7, 0.9)).values, plain.values)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_exact_bound_of_an_exact_distribution_is_the_texts_own_log_probability_in_every_trajectory(steps):
    sampler = Sampler(steps=steps, candidates=EXACT)
    x0 = DENSE.texts.repeat(3, 1)
    actual = sampler_bound(x0, reader(DENSE), Conditional(DENSE), LogLinear(), sampler, seed=2, draws=2)
    torch.testing.assert_close(actual.values, -DENSE.p.log().repeat(3))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_exact_bound_of_coar_lies_above_the_distribution_of_what_is_kept_and_repeats_bring_it_there(steps):
    energy, copies = ENERGIES["coar"][1], 400
    truth = exact_bound(Step(DENSE, reader(DENSE), energy, EXACT), steps, LogLinear())
    means = []
    for repeats in (1, 12):
        actual = sampler_bound(
            DENSE.texts.repeat(copies, 1), reader(DENSE), energy, LogLinear(), Sampler(steps=steps, candidates=EXACT),
            seed=3, draws=1, repeats=repeats,
        )  # fmt: skip
        mean, error = weighted(actual, DENSE, copies)
        assert error < 0.04
        assert mean > truth - 4 * error
        means.append(mean)
    assert mean < truth + 4 * error + 0.02
    assert (means[0] > means[1] + 0.02) == (steps > 1)  # in one step nothing is thrown away


def test_many_candidates_meet_the_exact_bound_of_coar():
    energy, x0 = ENERGIES["coar"][1], DENSE.texts.repeat(4, 1)

    def bound(k: int) -> Estimate:
        return sampler_bound(x0, reader(DENSE), energy, LogLinear(), Sampler(steps=1, candidates=k), seed=1, draws=1)

    exact = bound(EXACT)
    torch.testing.assert_close(exact.values, -DENSE.p.log().repeat(4))
    gaps = [abs(weighted(difference(bound(k), exact), DENSE, 4)[0]) for k in (4, 64, 4096)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.01


def test_the_exact_bound_asks_for_a_normalised_energy():
    energy = Residual(DENSE, whole_sequence=False)
    sampler = Sampler(steps=1, candidates=EXACT)
    with pytest.raises(ValueError, match="Residual is not"):
        sampler_bound(DENSE.texts, Marginals(DENSE), energy, LogLinear(), sampler, seed=0, draws=1)
    with pytest.raises(ValueError, match="Residual is not normalised"):
        sampler.sample(DENSE.canvas(2), Marginals(DENSE), energy, LogLinear(), torch.arange(2))


def test_estimates_of_one_seed_share_their_noise_and_are_paired():
    def bound(seed: int, k: int) -> Estimate:
        sampler = Sampler(steps=2, candidates=k)
        energy = Residual(DENSE, whole_sequence=False)
        return sampler_bound(DENSE.texts, reader(DENSE), energy, LogLinear(), sampler, seed, draws=2)

    assert torch.equal(bound(0, 3).values, bound(0, 3).values)
    assert not torch.equal(bound(0, 3).values, bound(1, 3).values)
    gain = difference(bound(0, 1), bound(0, 3))
    torch.testing.assert_close(gain.values, bound(0, 1).values - bound(0, 3).values)
    assert gain.standard_error == pytest.approx(gain.values.std().item() / math.sqrt(27))
    with pytest.raises(ValueError, match="estimates of 27 and 1 sequences cannot be paired"):
        difference(gain, Estimate(torch.zeros(1), 1))


@pytest.mark.parametrize("n", [2, 3])
def test_the_two_estimates_of_log_z_enclose_it_and_are_dengs(n):
    """Over all tuples of n draws: low is T_n, high is (2n - 1) T_n - 2 (n - 1) T_{n-1}."""
    energy = AutoregressiveEnergy(MODEL)  # pyright: ignore[reportArgumentType]
    xt = torch.tensor([DENSE.mask, 1, DENSE.mask])
    x, log_p, e = Step(DENSE, reader(DENSE), energy, 1).drafts(xt, 0.5, xt == DENSE.mask)
    log_p, log_v = log_p.sum(dim=1), -e[:, 0]
    truth = (log_p + log_v).logsumexp(0).item()

    def expected(count: int) -> tuple[float, float, float]:
        tuples = cartesian(len(x), count)
        weights = log_p[tuples].sum(dim=1).exp()
        low, high = equations.log_partition(log_v[tuples].T) if count > 1 else (log_v[tuples[:, 0]],) * 2
        plain = log_v[tuples].exp().mean(dim=1).log()
        return (weights @ low).item(), (weights @ high).item(), (weights @ plain).item()

    low, high, plain = expected(n)
    assert low == pytest.approx(plain)
    assert high == pytest.approx((2 * n - 1) * plain - 2 * (n - 1) * expected(n - 1)[2])
    assert low < truth - 1e-3
    assert high > truth + 1e-3


def test_the_mean_of_log_z_over_noise_lies_between_its_estimates():
    energy, copies = AutoregressiveEnergy(MODEL), 40  # pyright: ignore[reportArgumentType]
    few, many = (
        log_partition(DENSE.texts.repeat(copies, 1), Model(reader(DENSE), energy, LogLinear()), 0, 1, draws)
        for draws in (4, 256)
    )
    # Z = P_AR(the tokens that are not masked); P(a token is masked) is uniform in t, so every count is equally likely.
    truth = 0.0
    for masked in subsets(torch.ones(3, dtype=torch.bool)):
        weight = 1 / (4 * math.comb(3, int(masked.sum())))
        truth += weight * (DENSE.p @ DENSE.probability(torch.where(masked, DENSE.mask, DENSE.texts)).log()).item()
    for ends, tight in ((few, False), (many, True)):
        (low, low_error), (high, high_error) = (weighted(end, DENSE, copies) for end in ends)
        assert low - 4 * low_error < truth < high + 4 * high_error
        assert high > low
        assert (high - low < 0.02) == tight


def test_what_is_resampled_of_k_draws_never_exceeds_k_times_its_own_probability():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for k in (1, 2, 4):
        distribution = resampled(p, torch.tensor([0.0, -9.0, 3.0], dtype=torch.float64), k)
        assert distribution.sum().item() == pytest.approx(1)
        assert bool((distribution <= k * p + 1e-12).all())


def test_evaluation_draws_times_evenly_down_to_zero():
    """A floor in t would drop a part of the bound: here every time that the denoiser is shown is looked at."""
    seen = []

    class WatchedDenoiser(Marginals):
        def read(self, xt, t):
            seen.append(t)
            return super().read(xt, t)

    likelihood.nelbo(DENSE.texts.repeat(200, 1), WatchedDenoiser(DENSE), LogLinear(), seed=0, draws=4)
    t = torch.cat(seen).sort().values
    grid = (torch.arange(len(t), dtype=torch.float64) + 0.5) / len(t)
    assert (t - grid).abs().max() < 1.9 / math.sqrt(len(t))  # Kolmogorov and Smirnov
    assert 5 <= (t < 1e-3).sum() <= 45  # 21.6 are expected
    strata = torch.stack(seen).sort(dim=0).values
    torch.testing.assert_close(strata.diff(dim=0), torch.full((3, 5400), 0.25, dtype=torch.float64))


KNOWN = torch.tensor([True, False, False])
GIVEN = KNOWN.expand(DENSE.texts.shape)


@pytest.mark.parametrize("unmasking", [AtRandom(), MostCertain(), MostCertain(counts="fixed")])
def test_given_a_part_of_the_text_an_exact_conditional_bounds_the_rest_tightly(unmasking):
    x0, sampler = DENSE.texts, Sampler(steps=3, candidates=EXACT, unmasking=unmasking)
    actual = sampler_bound(x0, reader(DENSE), Conditional(DENSE), LogLinear(), sampler, 2, draws=2, known=GIVEN)
    expected = -DENSE.log_conditional(x0, torch.where(GIVEN, x0, DENSE.mask))
    torch.testing.assert_close(actual.values, expected)


def test_given_a_part_of_the_text_the_plain_bound_is_the_mean_over_the_paths_of_the_rest():
    text, sampler, n = int(DENSE.p.argmax()), Sampler(steps=2), 6000
    x0, step = DENSE.texts[text], Step(DENSE, reader(DENSE), None, 1)
    canvas, paths = torch.where(KNOWN, x0, DENSE.mask), []
    for first in subsets(~KNOWN):
        rest = ~KNOWN & ~first
        nats = [step.nll(x0, xt, t, new) for xt, t, new in (
            (canvas, 1.0, first), (torch.where(first, x0, canvas), 0.5, rest)) if new.any()]  # fmt: skip
        paths.append(sum(nats))
    actual = sampler_bound(
        x0.repeat(n, 1), reader(DENSE), None, LogLinear(), sampler, seed=1, draws=1, known=KNOWN.repeat(n, 1)
    )
    assert abs(actual.mean - sum(paths) / 4) < 4 * actual.standard_error
    written = sampler_distribution(DENSE, reader(DENSE), None, sampler, LogLinear(), canvas)
    assert sum(paths) / 4 > -math.log(written[text])


def test_given_a_part_of_the_text_the_nelbo_of_perfect_marginals_is_the_entropy_of_the_rest():
    copies = 400
    actual = likelihood.nelbo(
        DENSE.texts.repeat(copies, 1), Marginals(DENSE), LogLinear(), 3, draws=1, known=KNOWN.repeat(27 * copies, 1)
    )
    mean, error = weighted(actual, DENSE, copies)
    first = torch.stack([DENSE.p[DENSE.texts[:, 0] == token].sum() for token in range(3)])
    assert abs(mean - (DENSE.entropy + torch.xlogy(first, first).sum().item())) < 4 * error


def test_remasking_never_masks_what_is_given():
    sampler = Sampler(steps=5, unmasking=Remasking(share=1.0))
    for _, xt, new in trajectory(DENSE.texts, Model(reader(DENSE), None, LogLinear()), sampler, 0, 0, known=GIVEN):
        assert torch.equal(xt[:, 0], DENSE.texts[:, 0])
        assert not bool(new[:, 0].any())
