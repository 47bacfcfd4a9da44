"""Distances from a known distribution: zero for the exact models, known for models that are wrong in a known way."""

import math

import pytest
import torch

from edlm.data.synthetic import Agree, HiddenMarkov, Markov
from edlm.evaluation.exact_distance import QUARTERS, denoiser_distance, ratio, sample_distance
from edlm.exact.models import ExactDenoiser
from edlm.likelihood.bounds import nelbo
from edlm.likelihood.estimate import Estimate, difference
from edlm.sampling.sampler import Sampler
from edlm.schedule import Cosine, LogLinear

SOURCES = {"markov": Markov(), "hidden-markov": HiddenMarkov()}
every_source = pytest.mark.parametrize("name", SOURCES)


def sequences(distribution, count=200):
    return distribution.draw(77, torch.arange(count))


@pytest.mark.parametrize("source", [*SOURCES.values(), Agree()], ids=lambda source: source.kind)
def test_the_exact_denoiser_is_at_no_distance(source):
    distribution = source.distribution()
    actual = denoiser_distance(
        sequences(distribution, 30), ExactDenoiser(distribution), distribution, LogLinear(), seed=0, draws=2
    )
    assert tuple(actual) == QUARTERS
    for distance in actual.values():
        assert abs(distance.kl_nats_per_position.mean) < 1e-12
        assert abs(distance.nelbo_nats.mean) < 1e-12


@every_source
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=["log-linear", "cosine"])
def test_the_quarters_add_up_to_what_the_nelbo_loses(name, schedule):
    distribution = SOURCES[name].distribution()
    x0, wrong = sequences(distribution), ExactDenoiser(distribution, mix=0.3)
    actual = denoiser_distance(x0, wrong, distribution, schedule, seed=0, draws=4)
    total = Estimate(torch.stack([distance.nelbo_nats.values for distance in actual.values()]).sum(dim=0), 8)
    lost = difference(
        nelbo(x0, wrong, schedule, seed=1, draws=12), nelbo(x0, ExactDenoiser(distribution), schedule, seed=1, draws=12)
    )
    assert total.mean > 20 * total.standard_error
    assert abs(total.mean - lost.mean) < 4 * math.hypot(total.standard_error, lost.standard_error)
    # An expectation over q has less noise than the same difference at the tokens that were drawn.
    assert total.standard_error < lost.standard_error


def test_the_distance_of_one_token_is_the_divergence_of_its_distribution_at_every_time():
    distribution, mix = Markov(length=1, symbols=4).distribution(), 0.4
    p = (1 - mix) * distribution.first + mix / 4
    known = (distribution.first * (distribution.first / p).log()).sum().item()
    for distance in denoiser_distance(
        sequences(distribution), ExactDenoiser(distribution, mix), distribution, LogLinear(), 0, 2
    ).values():
        assert distance.kl_nats_per_position.mean == pytest.approx(known)
        assert distance.kl_nats_per_position.standard_error == pytest.approx(0, abs=1e-12)


def test_a_denoiser_that_finds_a_possible_token_impossible_is_infinitely_far():
    """Nothing is clipped: in half of the sequences it is right, and the mean is infinite all the same."""

    class Certain(ExactDenoiser):
        def read(self, xt, t):
            return torch.tensor([0.0, -math.inf], dtype=torch.float64).expand(*xt.shape, 2)

    distribution = Agree(symbols=2, length=4).distribution()
    actual = denoiser_distance(sequences(distribution), Certain(distribution), distribution, LogLinear(), 0, 1)
    assert actual[0.75, 1.0].kl_nats_per_position.mean == math.inf


def test_a_ratio_of_totals_has_the_error_of_the_mean_where_counts_are_equal():
    values = torch.tensor([1.0, 4.0, 2.0, 9.0], dtype=torch.float64)
    tripled = ratio(values * 3, torch.full((4,), 3.0, dtype=torch.float64), 1)
    assert tripled.mean == pytest.approx(4.0)
    assert tripled.standard_error == pytest.approx(Estimate(values, 1).standard_error)


def test_the_error_of_a_ratio_of_totals_is_that_of_many_repetitions():
    u = torch.rand(4000, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = (u[..., 0] * 5).ceil()
    totals = counts**1.5 + u[..., 1]
    actual = [ratio(*pair, 1) for pair in zip(totals[:200], counts[:200], strict=True)]
    spread = (totals.sum(dim=1) / counts.sum(dim=1)).std().item()
    claimed = math.sqrt(sum(estimate.standard_error**2 for estimate in actual) / len(actual))
    assert claimed == pytest.approx(spread, rel=0.05)
    naive = (totals / counts).mean(dim=1).std().item()
    assert claimed != pytest.approx(naive, rel=0.05)


@every_source
def test_texts_of_the_distribution_are_at_no_distance_from_it(name):
    distribution = SOURCES[name].distribution()
    actual = sample_distance(distribution.draw(5, torch.arange(2000)), distribution, seed=6)
    excess, error = actual.excess_nats
    assert 0 < error < 0.5
    assert abs(excess) < 4 * error
    assert actual.possible.mean == 1
    assert actual.pair_total_variation < 2 * actual.pair_total_variation_of_source < 0.05


@every_source
def test_plain_diffusion_in_few_steps_writes_what_the_distribution_finds_unlikely(name):
    distribution = SOURCES[name].distribution()
    canvas, seeds = torch.full((500, distribution.length), distribution.vocabulary), torch.arange(500)
    actual = {}
    for steps in (2, 8):
        texts = Sampler(steps=steps).sample(canvas, ExactDenoiser(distribution), None, LogLinear(), seeds)
        actual[steps] = sample_distance(texts, distribution, seed=6)
    excess, error = actual[2].excess_nats
    assert excess > 10 * error
    assert actual[8].excess_nats[0] < 0.6 * excess
    assert actual[2].pair_total_variation > 3 * actual[2].pair_total_variation_of_source


def test_a_sampler_with_one_sentence_looks_better_than_the_truth_to_the_cross_entropy_alone():
    distribution = SOURCES["markov"].distribution()
    texts = sequences(distribution, 500)
    likeliest = texts[distribution.log_p(texts).argmax()]
    actual = sample_distance(likeliest.expand(500, -1), distribution, seed=6)
    excess, error = actual.excess_nats
    assert excess < -5 * error
    assert actual.pair_total_variation > 10 * actual.pair_total_variation_of_source


def test_impossible_texts_are_counted_and_left_out_of_the_mean():
    distribution = Agree(symbols=4, length=3).distribution()
    texts = torch.tensor([[0, 0, 0], [1, 1, 2], [3, 3, 3], [0, 1, 2]])
    actual = sample_distance(texts, distribution, seed=0)
    assert actual.possible.mean == 0.5
    assert actual.cross_entropy.mean == pytest.approx(math.log(4))
    assert actual.excess_nats[0] == pytest.approx(0)
    nothing = sample_distance(texts[1::2], distribution, seed=0)
    assert nothing.possible.mean == 0
    assert math.isnan(nothing.excess_nats[0])


def test_the_reference_is_not_drawn_from_the_seed_of_the_entropy_estimate():
    distribution = HiddenMarkov().distribution()
    assert distribution.entropy(6, sequences=100).method == "estimated"
    actual = sample_distance(
        distribution.draw(6, torch.arange(300)), distribution, seed=6
    )  # the sequences that estimate H(q)
    assert actual.pair_total_variation != actual.pair_total_variation_of_source
