"""The exact models are those of the listed worlds, and at lengths that cannot be listed the identities hold as well."""

import pytest
import torch

from edlm import equations
from edlm.data.synthetic import Agree, HiddenMarkov, Markov
from edlm.data.tokenizer_kinds import Symbols
from edlm.energies.whole_sequence import AutoregressiveEnergy
from edlm.evaluation.judge_models import Judge
from edlm.evaluation.judged_quality import assess
from edlm.exact.models import ExactAutoregressive, ExactConditional, ExactDenoiser, ExactEnergy
from edlm.likelihood.bounds import autoregressive_nll, nelbo, sampler_bound
from edlm.likelihood.estimate import Estimate, difference
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import Cosine, LogLinear
from tests import worlds
from tests.enumeration import Step

SHORT = {
    "agree": Agree(symbols=3, length=4),
    "markov": Markov(symbols=3, length=4, seed=1),
    "hidden-markov": HiddenMarkov(symbols=3, length=4, states=3, move_concentration=0.4, seed=1),
}
LONG = {"markov": Markov(), "hidden-markov": HiddenMarkov()}
SEQUENCES = 300
short = pytest.mark.parametrize("name", SHORT)
long = pytest.mark.parametrize("name", LONG)


def listed(distribution):
    return worlds.hidden(distribution.first, distribution.moves, distribution.emissions, distribution.length)


def sequences(distribution, count=SEQUENCES):
    """Not those of the source itself: of another seed."""
    return distribution.draw(77, torch.arange(count))


def holes(distribution, share=0.5):
    """Every partly masked text, possible or not, and some of its masked positions that are new."""
    xt = worlds.cartesian(distribution.vocabulary + 1, distribution.length)
    chance = torch.rand(xt.shape, generator=torch.Generator().manual_seed(3))
    return xt, (xt == distribution.vocabulary) & (chance < share)


@short
@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_the_denoiser_is_that_of_the_listed_world(name, mix):
    distribution = SHORT[name].distribution()
    xt = worlds.cartesian(distribution.vocabulary + 1, distribution.length)
    actual, expected = ExactDenoiser(distribution, mix), worlds.Marginals(listed(distribution), mix)
    t, masked = torch.ones(len(xt), dtype=torch.float64), xt == distribution.vocabulary
    log_p, reference = (denoiser.log_p(denoiser.read(xt, t), masked) for denoiser in (actual, expected))
    torch.testing.assert_close(log_p.exp(), reference.exp())
    assert (actual.mask, actual.vocabulary) == (expected.mask, expected.vocabulary)


@short
@pytest.mark.parametrize(("drafts", "block"), [(True, None), (False, None), (False, 2), (False, 3)])
def test_the_energy_is_that_of_the_listed_world(name, drafts, block):
    distribution = SHORT[name].distribution()
    world = listed(distribution)
    reader = worlds.Marginals(world, mix=0.2)
    actual, expected = ExactEnergy(distribution, drafts, block), worlds.Residual(world, drafts, block)
    assert (actual.whole_sequence, actual.block) == (expected.whole_sequence, expected.block)
    xt, new = holes(distribution, share=1.0 if drafts else 0.6)
    t = torch.ones(len(xt), dtype=torch.float64)
    context = reader.read(xt, t)
    tokens = torch.randint(
        distribution.vocabulary, (len(xt), 5, distribution.length), generator=torch.Generator().manual_seed(4)
    )
    x = torch.where(new[:, None], tokens, xt[:, None])
    by_position = torch.where(
        new[:, None], context[:, None].expand(-1, 5, -1, -1).gather(-1, tokens[..., None])[..., 0], 0
    )
    log_p = equations.sum_by_group(by_position, block)
    torch.testing.assert_close(
        actual(x, xt, t, log_p, context), expected(x, xt, t, log_p, context), rtol=1e-8, atol=1e-9
    )


@short
def test_the_conditional_is_normalised_whatever_the_denoiser(name):
    distribution = SHORT[name].distribution()
    world, energy = listed(distribution), ExactConditional(distribution)
    for xt, new in list(zip(*holes(distribution), strict=True))[::9]:
        x, log_p, energies = Step(world, worlds.Marginals(world, mix=0.2), energy, 1).drafts(xt, 0.5, new)
        assert (log_p.sum(dim=1) - energies[:, 0]).logsumexp(dim=0).item() == pytest.approx(0, abs=1e-9)
        x = torch.where(new, x, xt)
        actual = energy.log_p(x[None], xt[None], torch.zeros(1))[0]
        torch.testing.assert_close(actual.exp(), world.log_conditional(x, xt).exp())


@short
def test_the_autoregressive_model_is_that_of_the_listed_world(name):
    distribution = SHORT[name].distribution()
    x = worlds.cartesian(distribution.vocabulary, distribution.length)
    actual, expected = ExactAutoregressive(distribution), worlds.EnumeratedAutoregressive(listed(distribution))
    where = x % 2 == 0
    for selected in (None, where):
        torch.testing.assert_close(actual.log_p(x, selected).exp(), expected.log_p(x, selected).exp())
    assert actual.vocabulary == distribution.vocabulary


@long
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=["log-linear", "cosine"])
def test_with_perfect_marginals_the_nelbo_is_the_entropy_at_full_length(name, schedule):
    distribution = LONG[name].distribution()
    x0, entropy = sequences(distribution), distribution.entropy()
    actual = nelbo(x0, ExactDenoiser(distribution), schedule, seed=1, draws=16)
    assert abs(actual.mean - entropy.mean) < 4 * (actual.standard_error + entropy.standard_error)
    paired = difference(actual, Estimate(-distribution.log_p(x0), 1))
    assert paired.standard_error < actual.standard_error
    assert abs(paired.mean) < 4 * paired.standard_error
    worse = difference(nelbo(x0, ExactDenoiser(distribution, mix=0.2), schedule, seed=1, draws=16), actual)
    assert worse.mean > 10 * worse.standard_error


@long
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_sampled_exactly_the_bound_is_each_sequences_own_log_probability(name, steps):
    distribution = LONG[name].distribution()
    x0 = sequences(distribution)
    sampler = Sampler(steps=steps, candidates=EXACT)
    actual = sampler_bound(
        x0, ExactDenoiser(distribution, mix=0.3), ExactConditional(distribution), LogLinear(), sampler, 2, draws=1
    )
    torch.testing.assert_close(actual.values, -distribution.log_p(x0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_sampled_exactly_texts_have_the_entropy_of_the_source_at_any_number_of_steps(steps):
    distribution = LONG["hidden-markov"].distribution()
    canvas, entropy = torch.full((1500, distribution.length), distribution.vocabulary), distribution.entropy()
    sampler = Sampler(steps=steps, candidates=EXACT)
    texts = sampler.sample(
        canvas, ExactDenoiser(distribution), ExactConditional(distribution), LogLinear(), torch.arange(1500)
    )
    nll = Estimate(-distribution.log_p(texts), 1)
    assert abs(nll.mean - entropy.mean) < 4 * (nll.standard_error + entropy.standard_error)


@long
def test_the_table_of_bounds_with_perfect_models_keeps_its_order(name):
    """Markov chain of 8 symbols, L = 32: whole-sequence energies are worse than plain diffusion from two steps on,
    except in the last step; step energies are better, and blocks are best with few steps."""
    distribution = LONG[name].distribution()
    x0 = sequences(distribution)
    truth = Estimate(-distribution.log_p(x0), 1)

    def bound(steps: int, energy=None, k: int = 8, window=(0.0, 1.0), repeats=1) -> Estimate:
        sampler = Sampler(steps=steps, candidates=k, window=window)
        actual = sampler_bound(
            x0, ExactDenoiser(distribution), energy, LogLinear(), sampler, 1, draws=1, repeats=repeats
        )
        return difference(actual, truth)

    def clear(better: Estimate, worse: Estimate) -> bool:
        gap = difference(worse, better)
        return gap.mean > 4 * gap.standard_error

    whole, step, blocks = (
        ExactEnergy(distribution, whole_sequence=True),
        ExactEnergy(distribution, False),
        ExactEnergy(distribution, False, block=8),
    )
    plain = {steps: bound(steps) for steps in (1, 2, 4, 8)}
    assert all(clear(plain[more], plain[fewer]) for fewer, more in ((1, 2), (2, 4), (4, 8)))
    assert clear(plain[4], bound(4, whole))
    assert clear(bound(4, whole, repeats=8), bound(4, whole))
    assert clear(bound(4, whole, window=(0.0, 0.25)), plain[4])
    assert clear(bound(4, step), bound(4, whole, window=(0.0, 0.25)))
    assert clear(bound(1, blocks), bound(1, step))
    assert clear(bound(1, blocks, k=32), bound(1, blocks))
    assert bound(1, whole).mean == pytest.approx(bound(1, step).mean)
    assert all(bound(4, energy).mean > 0 for energy in (step, blocks))


@long
def test_at_full_length_the_autoregressive_energy_is_the_exact_one_but_for_a_constant_of_what_is_known(name):
    distribution = LONG[name].distribution()
    x0 = sequences(distribution, 20)
    model = ExactAutoregressive(distribution)
    xt = torch.where(
        torch.rand(x0.shape, generator=torch.Generator().manual_seed(0)) < 0.6, distribution.vocabulary, x0
    )
    other = distribution.fill(xt, xt == distribution.vocabulary, torch.full(x0.shape, 0.5, dtype=torch.float64))[0]
    x, log_p = torch.stack([x0, other], dim=1), torch.zeros(20, 2, 1, dtype=torch.float64)
    t, nothing = torch.ones(20), torch.zeros(1)
    ar = AutoregressiveEnergy(model)(x, xt, t, log_p, nothing)  # pyright: ignore[reportArgumentType]
    exact = ExactEnergy(distribution, whole_sequence=True)(x, xt, t, log_p, nothing)
    torch.testing.assert_close(ar - exact, -distribution.log_p(xt)[:, None, None].expand(-1, 2, 1))
    torch.testing.assert_close(autoregressive_nll(x0, model).values, -distribution.log_p(x0))  # pyright: ignore


def test_the_exact_autoregressive_model_is_a_judge():
    distribution = LONG["markov"].distribution()
    texts = sequences(distribution)
    tokenizer = Symbols(size=distribution.vocabulary).build([])
    judge = Judge(
        "exact", ExactAutoregressive(distribution), tokenizer, distribution.length + 1, start=distribution.vocabulary
    )
    quality = assess(texts, judge)
    torch.testing.assert_close(quality.nats, -distribution.log_p(texts))
    assert not quality.retokenised
    torch.testing.assert_close(quality.features, distribution.moves[texts[:, -1]])


def test_what_makes_no_sense_is_refused():
    distribution = SHORT["agree"].distribution()
    with pytest.raises(ValueError, match=r"mix is a share, between 0 and 1; got 1\.5"):
        ExactDenoiser(distribution, mix=1.5)
    with pytest.raises(ValueError, match=r"a whole-sequence energy has no blocks; leave block out \(got 8\)"):
        ExactEnergy(distribution, whole_sequence=True, block=8)
