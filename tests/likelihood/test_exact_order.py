"""The likelihood of the fixed order: all texts sum to 1, and the sampler writes each as often as it says."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.cooperative_work import run_to_end
from edlm.interfaces import Model
from edlm.likelihood import exact_order_nll, sampler_bound
from edlm.likelihood.exact_order import FIXED_ORDER, has_exact_likelihood, stepwise_exact_order
from edlm.sampling.sampler import Sampler
from edlm.sampling.unmasking import AtRandom, MostCertain, Remasking
from edlm.schedule import Cosine, LogLinear
from tests import networks
from tests.counting import chi_square
from tests.enumeration import sampler_distribution
from tests.sampling.test_sampler_distribution import COAR, DENSE, FAR, LONGER, N, counts, denoiser
from tests.worlds import Conditional, Constant, Marginals, OnProposal, Residual, cartesian, world

EXACT_DRAWS = Conditional(world("dense", seed=7))  # normalised, and not the source
PLAIN = Sampler(steps=3, unmasking=FIXED_ORDER)
CASES = {
    "plain": (LONGER, None, PLAIN),
    "a step per position": (LONGER, None, replace(PLAIN, steps=4)),
    "more steps than positions": (LONGER, None, replace(PLAIN, steps=7)),
    "another grid": (LONGER, None, replace(PLAIN, steps=2, grid=(0.0, 0.7, 1.0))),
    "exact draws": (DENSE, EXACT_DRAWS, replace(PLAIN, steps=2, candidates=0)),
    "exact draws in a window": (DENSE, EXACT_DRAWS, replace(PLAIN, candidates=0, window=(0.0, 0.5))),
    "an energy that is not used": (DENSE, Residual(DENSE, False), replace(PLAIN, steps=2)),
}
cases = pytest.mark.parametrize("name", CASES)


def probabilities(here, reader, energy, schedule, sampler, texts=None, known=None):
    """p of the texts, by default of every text there is."""
    texts = cartesian(here.vocabulary, here.length) if texts is None else texts
    return exact_order_nll(texts, reader, energy, schedule, sampler, known).values.neg().exp()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99), vocabulary=st.integers(2, 3), length=st.integers(1, 4), steps=st.integers(1, 6),
    source=st.sampled_from(["dense", "markov", "agree"]), cosine=st.booleans(), mix=st.sampled_from([0.0, 0.2, 1.0]),
)  # fmt: skip
def test_the_probabilities_of_all_texts_sum_to_1(seed, vocabulary, length, steps, source, cosine, mix):
    here = world(source, vocabulary, length, seed)
    schedule = Cosine() if cosine else LogLinear()
    actual = probabilities(here, Marginals(here, mix), None, schedule, replace(PLAIN, steps=steps))
    assert actual.sum().item() == pytest.approx(1, abs=1e-9)


@cases
def test_they_sum_to_1_and_are_those_of_the_listed_draws_of_the_sampler(name):
    here, energy, sampler = CASES[name]
    actual = probabilities(here, denoiser(here), energy, LogLinear(), sampler)
    expected = sampler_distribution(here, denoiser(here), energy, sampler, LogLinear(), here.canvas(1)[0])
    assert actual.sum().item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@cases
def test_the_sampler_writes_every_text_as_often_as_it_is_likely(name):
    here, energy, sampler = CASES[name]
    texts = sampler.sample(here.canvas(N), denoiser(here), energy, LogLinear(), torch.arange(N))
    actual = probabilities(here, denoiser(here), energy, LogLinear(), sampler)
    assert chi_square(counts(here, texts), actual) < FAR
    if energy is EXACT_DRAWS:  # the same distribution in any order
        return
    other = replace(sampler, unmasking=AtRandom())
    at_random = other.sample(here.canvas(4 * N), denoiser(here), energy, LogLinear(), torch.arange(4 * N))
    assert chi_square(counts(here, at_random), actual) > FAR + 1


@pytest.mark.parametrize("candidates", [0, 1])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_probabilities_of_a_networks_texts_sum_to_1(steps, candidates):
    network = networks.denoiser(3)
    energy = networks.stirred(networks.KINDS["conditional"].build(network, None), seed=4)
    texts, sampler = cartesian(3, 4), replace(PLAIN, steps=steps, candidates=candidates)
    nll = exact_order_nll(texts, network, energy, LogLinear(), sampler)  # pyright: ignore[reportArgumentType]
    assert nll.values.neg().exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(exact_order_nll(texts[:0], network, None, LogLinear(), PLAIN).values, torch.zeros(0).double())


@pytest.mark.parametrize("known", [(True, False, False, True), (False, True, False, False)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_given_a_part_of_the_text_the_rest_has_the_samplers_distribution_on_that_canvas(known, steps):
    where, sampler = torch.tensor(known), replace(PLAIN, steps=steps)
    canvas = torch.where(where, LONGER.texts[70], LONGER.mask)
    texts = LONGER.texts[(LONGER.texts == canvas).sum(dim=1) == where.sum()]
    actual = probabilities(LONGER, denoiser(LONGER), None, LogLinear(), sampler, texts, where.expand(texts.shape))
    expected = sampler_distribution(LONGER, denoiser(LONGER), None, sampler, LogLinear(), canvas)
    assert actual.sum().item() == pytest.approx(1, abs=1e-9)
    index = (texts * 3 ** torch.arange(3, -1, -1)).sum(dim=1)
    torch.testing.assert_close(actual, expected[index], rtol=1e-9, atol=1e-12)


def test_rows_of_one_batch_may_know_different_parts():
    x0, known = LONGER.texts[[5, 70]], torch.tensor([[True, False, False, False], [False, True, True, True]])
    actual = exact_order_nll(x0, denoiser(LONGER), None, LogLinear(), PLAIN, known).values
    alone = [
        exact_order_nll(x0[i : i + 1], denoiser(LONGER), None, LogLinear(), PLAIN, known[i : i + 1]) for i in (0, 1)
    ]
    assert actual.tolist() == [one.values.item() for one in alone]


def test_everything_known_is_certain():
    known = torch.ones_like(DENSE.texts, dtype=torch.bool)
    actual = exact_order_nll(DENSE.texts, denoiser(DENSE), None, LogLinear(), PLAIN, known)
    assert actual.values.tolist() == [0.0] * len(DENSE.texts)


@cases
def test_the_bound_of_a_fixed_order_has_no_slack_and_no_noise(name):
    here, energy, sampler = CASES[name]
    exact = exact_order_nll(here.texts, denoiser(here), energy, LogLinear(), sampler)
    for seed in (0, 1):
        bound = sampler_bound(here.texts, denoiser(here), energy, LogLinear(), sampler, seed, draws=1)
        torch.testing.assert_close(bound.values, exact.values, rtol=1e-9, atol=1e-12)


class Even(Marginals):
    """Nothing is more certain than anything else."""

    def read(self, xt, t):
        return torch.full((*xt.shape, self.vocabulary), -math.log(self.vocabulary), dtype=torch.float64)


def test_ties_are_broken_from_the_left_in_the_sampler_and_in_the_likelihood():
    seen = []

    class Watched(Even):
        def read(self, xt, t):
            seen.append((xt == self.mask).tolist())
            return super().read(xt, t)

    sampler, left = replace(PLAIN, steps=4), [[at >= done for at in range(4)] for done in range(4)]
    nll = exact_order_nll(LONGER.texts[:1], Watched(LONGER), None, LogLinear(), sampler)
    assert nll.mean == pytest.approx(4 * math.log(3))
    assert seen == [[masked] for masked in left]
    seen.clear()
    sampler.sample(LONGER.canvas(1), Watched(LONGER), None, LogLinear(), torch.tensor([9]))
    assert seen == [[masked] for masked in left]


def test_the_greedy_text_is_the_one_whose_every_token_is_the_likeliest_when_it_is_unmasked():
    texts = cartesian(3, 4)
    model = Model(denoiser(LONGER), None, LogLinear())
    actual = run_to_end(stepwise_exact_order(texts, model, PLAIN)).greedy
    xt = LONGER.canvas(1)
    for t, count in ((1.0, 1), (2 / 3, 2), (1 / 3, 1)):
        log_p = denoiser(LONGER).read(xt, torch.tensor([t], dtype=torch.float64))[0]
        masked = torch.nonzero(xt[0] == LONGER.mask)[:, 0].tolist()
        masked.sort(key=lambda at: (-log_p[at].max().item(), at))
        for at in masked[:count]:
            xt[0, at] = log_p[at].argmax()
    assert texts[actual].tolist() == xt.tolist()


@pytest.mark.parametrize(
    ("energy", "changes", "message"),
    [
        (None, {"unmasking": AtRandom()}, "unmasking is AtRandom.*give {kind: most_certain, counts: fixed}, or use"),
        (None, {"unmasking": MostCertain()}, "unmasking is MostCertain.*counts='drawn'"),
        (None, {"unmasking": Remasking(share=0.5)}, "unmasking is Remasking"),
        (
            Residual(DENSE, False),
            {"candidates": 2},
            "candidates is 2: the probability of the chosen one is a mean over",
        ),
        (OnProposal(DENSE, DENSE), {"candidates": 3}, "candidates is 3"),
        (Constant(0.0, whole_sequence=False), {"candidates": 0}, r"candidates is 0 \(exact\), and Constant is not"),
        (COAR, {"candidates": 0}, "CarryOverEnergy scores whole sequences, so the probability of a step is a sum"),
    ],
)
def test_a_sampler_without_an_exact_likelihood_is_refused_with_the_reason(energy, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        exact_order_nll(DENSE.texts, denoiser(DENSE), energy, LogLinear(), replace(PLAIN, **changes))


def test_which_samplers_have_an_exact_likelihood():
    fixed = [replace(PLAIN, candidates=k) for k in (0, 1, 2)]
    assert [has_exact_likelihood(sampler) for sampler in fixed] == [True, True, False]
    assert not has_exact_likelihood(replace(PLAIN, unmasking=MostCertain()))
