"""The learning rate of a step is the schedule's: warm-up, then a constant or a cosine."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edlm.training.learning_rate import learning_rate, stable_steps
from tests.toy import training


@given(st.integers(1, 200), st.integers(0, 50), st.sampled_from(["constant", "cosine", "wsd"]))
@examples(max_examples=60, deadline=None)
def test_the_learning_rate_warms_up_then_stays_or_falls_to_nothing(steps, warmup, decay):
    settings = training(steps=steps, warmup_steps=warmup, decay=decay, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    rising = rates[: min(warmup, steps)]
    assert rising == sorted(rising)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)
    if after:
        assert after[0] == pytest.approx(1.0) or (decay == "wsd" and warmup > stable_steps(settings))
        assert decay != "constant" or after[-1] == 1.0
    if warmup < steps and decay != "constant":
        assert learning_rate(settings, steps) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0]),
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_the_learning_rate_of_every_step_is_this(decay, expected):
    settings = training(steps=8, warmup_steps=4, decay=decay, decay_share=0.25, learning_rate=2.0)
    assert [learning_rate(settings, step) for step in range(9)] == pytest.approx([2 * factor for factor in expected])


def test_a_cosine_without_warm_up_halves_in_the_middle():
    assert learning_rate(training(steps=10, warmup_steps=0, learning_rate=1.0), 5) == pytest.approx(0.5)
    assert math.isfinite(learning_rate(training(steps=1, warmup_steps=1), 0))


@given(st.integers(1, 200), st.integers(0, 100), st.integers(0, 50), st.sampled_from(["constant", "cosine", "wsd"]))
@examples(max_examples=60, deadline=None)
def test_rates_of_the_stable_steps_are_those_of_a_longer_training(steps, more, warmup, decay):
    shorter, longer = (training(steps=count, warmup_steps=warmup, decay=decay) for count in (steps, steps + more))
    assert stable_steps(shorter) <= stable_steps(longer)
    for step in range(stable_steps(shorter)):
        assert learning_rate(shorter, step) == learning_rate(longer, step)


@pytest.mark.parametrize("share", ["0.07", "0.1", "0.14", "0.28", "0.3", "0.55"])
def test_a_decay_takes_the_share_of_the_steps_as_it_is_written(share):
    hundredths = int(share[2:].ljust(2, "0"))
    for steps in range(100, 2001, 100):
        settings = training(steps=steps, decay="wsd", decay_share=float(share))
        assert steps - stable_steps(settings) == hundredths * steps // 100
