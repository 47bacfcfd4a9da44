"""The distance of an energy from the exact one: zero for it, known for energies that are wrong in a known way."""

import math

import pytest
import torch

from edlm.data.synthetic import Agree, HiddenMarkov, Markov
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.evaluation.exact_energy_distance import EnergyReport, energy_distance
from edlm.exact.models import ExactConditional, ExactDenoiser, ExactEnergy
from edlm.interfaces import Model
from edlm.likelihood.bounds import sampler_bound
from edlm.likelihood.estimate import difference
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.networks import denoiser as network
from tests.networks import stirred

DISTRIBUTIONS = {
    source.kind: source.distribution()
    for source in (Markov(length=16), HiddenMarkov(length=16), Agree(symbols=3, length=6))
}
STEPS = (1, 2, 4)
SHAPES = [(True, None), (False, None), (False, 4)]
ZERO = ("variance_on_samples", "variance_on_candidates", "offset", "choice_total_variation", "choice_kl", "lost_gain")
shapes = pytest.mark.parametrize(("whole_sequence", "block"), SHAPES, ids=["whole sequence", "step", "blocks"])
every_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


class Wrong(ExactEnergy):
    """The exact energy with a known error: scaled, moved by a constant of x_t, or moved for some tokens."""

    def __init__(self, distribution, whole_sequence, block=None, scale=1.0, constant=0.0, token=0.0):
        super().__init__(distribution, whole_sequence, block)
        self.scale, self.constant, self.token = scale, constant, token

    def __call__(self, x, xt, t, log_p, context):
        energy = self.scale * super().__call__(x, xt, t, log_p, context)
        known = (xt == 0).sum(dim=1)[:, None, None]
        return energy + self.constant * known + self.token * (x == 0).any(dim=-1)[..., None]


def distance(distribution, energy, count=40, denoiser=None, steps=STEPS, draws=1, candidates=4) -> EnergyReport:
    x0 = distribution.draw(77, torch.arange(count))
    denoiser = ExactDenoiser(distribution, mix=0.2) if denoiser is None else denoiser
    return energy_distance(x0, Model(denoiser, energy, LogLinear()), distribution, 0, steps, draws, candidates)


@every_distribution
@shapes
def test_the_exact_energy_is_at_no_distance_with_or_without_a_constant_of_what_is_known(name, whole_sequence, block):
    """Where tokens agree, some buckets have no candidates that are possible, and so no mean over them."""
    distribution = DISTRIBUTIONS[name]
    for constant in (0.0, 3.0):
        report = distance(distribution, Wrong(distribution, whole_sequence, block, constant=constant))
        for part in (report.whole, *report.by_quarter.values(), *report.by_new.values()):
            for field in ZERO:
                mean = getattr(part, field).mean
                assert abs(mean) < 1e-9 or (name == "agree" and math.isnan(mean)), field
        assert report.whole.exact_gain.mean > 0
        if constant == 0:
            assert report.whole.correlation_misleading == pytest.approx(1)


@shapes
def test_intervals_of_time_and_of_size_part_the_groups(whole_sequence, block):
    distribution = DISTRIBUTIONS["markov"]
    report = distance(distribution, Wrong(distribution, whole_sequence, block, scale=0.5))
    for parts in (report.by_quarter, report.by_new):
        assert sum(part.groups for part in parts.values()) == report.whole.groups
        mixed = sum(part.groups * part.lost_gain.mean for part in parts.values()) / report.whole.groups
        assert mixed == pytest.approx(report.whole.lost_gain.mean)
    assert max(high for _, high in report.by_new) < 2 * (block or distribution.length)
    assert min(low for low, _ in report.by_new) == 2
    # T = 1, 2, 4: the steps are at t = 1/4, 1/2, 3/4 and 1, each the end of a quarter.
    assert len(report.by_quarter) == 4


@every_distribution
def test_a_constant_energy_loses_the_whole_gain(name):
    distribution = DISTRIBUTIONS[name]
    nothing = (
        distance(distribution, Wrong(distribution, False, scale=0.0))
        if name != "agree"
        else distance(distribution, _Constant(), count=60)
    )
    whole = nothing.whole
    torch.testing.assert_close(whole.lost_gain.values, whole.exact_gain.values)
    assert whole.lost_gain.mean > 4 * whole.lost_gain.standard_error
    assert 0 < whole.choice_total_variation.mean <= 1
    assert 0 < whole.choice_kl.mean <= math.log(4)


class _Constant:
    whole_sequence, block = False, None

    def __call__(self, x, xt, t, log_p, context):
        return torch.zeros_like(log_p)


def test_the_correlation_cannot_show_a_scaled_energy_from_the_truth_and_the_others_can():
    distribution = DISTRIBUTIONS["markov"]
    actual = distance(distribution, Wrong(distribution, False, scale=0.2)).whole
    assert actual.correlation_misleading == pytest.approx(1)
    assert actual.lost_gain.mean > 0.2 * actual.exact_gain.mean
    assert actual.choice_total_variation.mean > 0.2
    # Samples of q have lower exact energies than candidates: an energy that is too flat separates them too little.
    assert actual.offset.mean > 4 * actual.offset.standard_error
    assert distance(distribution, Wrong(distribution, False, scale=3.0)).whole.offset.mean < 0


def test_an_error_on_one_token_has_the_variance_of_its_frequency():
    """With independent tokens of which 0 has probability 1/4, an error of 2 nats where both new tokens lack it."""
    distribution = HiddenMarkov(symbols=4, length=2, states=1, emission_concentration=1e9).distribution()
    actual = distance(
        distribution,
        Wrong(distribution, False, token=2.0),
        count=3000,
        steps=(1,),
        denoiser=ExactDenoiser(distribution),
    ).whole
    some = 1 - 0.75**2
    for variance in (actual.variance_on_samples, actual.variance_on_candidates):
        assert abs(variance.mean - 4 * some * (1 - some)) < 4 * variance.standard_error
    assert abs(actual.offset.mean) < 4 * actual.offset.standard_error
    assert actual.exact_gain.mean == pytest.approx(0, abs=1e-6)
    assert actual.lost_gain.mean > 4 * actual.lost_gain.standard_error


@pytest.mark.parametrize(
    "energy", [Wrong(DISTRIBUTIONS["markov"], False), Wrong(DISTRIBUTIONS["markov"], False, scale=0.3)]
)
def test_at_one_step_the_gain_is_that_of_the_bound(energy):
    distribution, k = DISTRIBUTIONS["markov"], 4
    x0, denoiser = distribution.draw(77, torch.arange(600)), ExactDenoiser(distribution, mix=0.2)

    def bound(energy, k):
        return sampler_bound(x0, denoiser, energy, LogLinear(), Sampler(steps=1, candidates=k), seed=9, draws=4)

    actual = distance(distribution, energy, count=600, steps=(1,), draws=4, candidates=k).whole
    gain = difference(actual.exact_gain, actual.lost_gain)
    known = difference(bound(None, 1), bound(energy, k))
    assert abs(gain.mean - known.mean) < 4 * math.hypot(gain.standard_error, known.standard_error)
    assert gain.standard_error < 0.03


def test_what_is_lost_is_never_below_zero_in_the_mean():
    """The truth among the candidates is likeliest to be picked out by the exact energy."""
    distribution = DISTRIBUTIONS["hidden-markov"]
    for changes in ({"scale": 0.5}, {"scale": 1.5}, {"token": 3.0}):
        lost = distance(distribution, Wrong(distribution, False, **changes), count=300).whole.lost_gain
        assert lost.mean > 3 * lost.standard_error


@pytest.mark.parametrize(
    "config",
    [
        StepEnergyConfig(block=4),
        StepEnergyConfig(block=None),
        ConditionalEnergyConfig(),
        BidirectionalEnergyConfig(),
        ResidualEnergyConfig(),
    ],
)
def test_trained_networks_are_compared_as_they_are(config):
    distribution, reader = DISTRIBUTIONS["markov"], network(vocabulary=8)
    borrowed = (
        stirred(ConditionalEnergyConfig(width=16, heads=2).build(reader), seed=5)
        if isinstance(config, ResidualEnergyConfig)
        else None
    )
    energy = stirred(config.build(reader, borrowed), seed=3)
    report = distance(distribution, energy, count=16, denoiser=reader)
    for part in (report.whole, *report.by_quarter.values()):
        for field in (*ZERO, "exact_gain"):
            assert math.isfinite(getattr(part, field).mean), field
    assert report.whole.variance_on_samples.mean > 0.1
    assert abs(report.whole.correlation_misleading) <= 1


def test_of_a_residual_the_truth_is_the_ratio_to_its_proposals_distribution():
    """On top of the exact conditional nothing is left to learn: E* = 0."""
    distribution = DISTRIBUTIONS["markov"]

    class OnTop(_Constant):
        proposal = ExactConditional(distribution)

    whole = distance(distribution, OnTop()).whole
    assert whole.exact_gain.mean == pytest.approx(0, abs=1e-9)
    for field in ZERO:
        assert getattr(whole, field).mean == pytest.approx(0, abs=1e-9), field


def test_what_cannot_be_compared_is_refused():
    distribution = DISTRIBUTIONS["markov"]
    with pytest.raises(ValueError, match="candidates is 1; to compare tokens"):
        distance(distribution, Wrong(distribution, False), candidates=1)
    short = Markov(length=1).distribution()
    with pytest.raises(ValueError, match=r"no step of the grids \(1, 2, 4\) unmasks two tokens of a group"):
        distance(short, Wrong(short, False))
