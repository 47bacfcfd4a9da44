"""A plan's times follow from FLOP and bytes, and what it offers for a training that does not fit does fit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.planning.devices import DEVICES, GB, parse_devices
from edlm.planning.training_memory import SHARDINGS, Sharding, TrainingWork
from edlm.planning.training_plan import Assumptions, TrainingPlan, remedies
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.settings import Training
from tests.toy import Toy, rows, training

WORK = TrainingWork(
    trained=7 * 10**9,
    matrices=6 * 10**9,
    frozen=0,
    flop=4e18,
    activations=3e9,
    checkpointed=1e7,
    logits=1024,
    vocabulary=50_257,
)
TRAINING = Training(steps=1000, batch=256, precision="bfloat16", checkpoint_every=100, ema=0.999)
PLAN = TrainingPlan(WORK, TRAINING, 2048, DEVICES["H100"], 64, Sharding(1), Assumptions())


def test_seconds_and_tokens_follow_from_peak_utilisation_and_bandwidth():
    plan = replace(PLAN, assumptions=replace(PLAN.assumptions, mfu=0.5, network_efficiency=0.8))
    assert plan.compute_seconds == pytest.approx(4e18 / 64 / (989e12 * 0.5))
    assert plan.communication_seconds == pytest.approx(63 / 64 * (2 * 28e9 + 14e9) / (50e9 * 0.8))
    assert plan.tokens_per_second == pytest.approx(256 * 2048 / plan.step_seconds)
    assert plan.mfu == pytest.approx(4e18 / 64 / plan.step_seconds / 989e12)
    assert plan.checkpoint_bytes == 7 * 10**9 * 16
    assert plan.hours * 3600 == pytest.approx(1000 * plan.step_seconds + 10 * plan.checkpoint_stop_seconds)


@pytest.mark.parametrize(("steps", "every"), [(6, 3), (7, 3), (2, 3)])
def test_as_many_validations_are_planned_as_a_training_makes(steps, every):
    plan = replace(PLAN, training=replace(TRAINING, steps=steps))
    validated = replace(plan, training=replace(plan.training, validate_every=every, validation_rows=TRAINING.batch))
    settings, made = training(steps=steps, validate_every=every), []
    engine = LocalEngine(Toy(0.0), settings)
    evaluating = engine.evaluating

    def counted():
        made.append(engine.step)
        return evaluating()

    engine.evaluating = counted
    fit(engine, rows, settings, 0, lambda *_: None, lambda _: None, rows(0, 0, settings.batch))
    expected = len(made) * plan.compute_seconds / 3
    assert (validated.hours - plan.hours) * 3600 == pytest.approx(expected)


def test_within_a_machine_the_faster_link_counts():
    assert replace(PLAN, count=8).communication_seconds < PLAN.communication_seconds / 5
    assert replace(PLAN, count=1).communication_seconds == 0


@given(
    sharding=st.sampled_from(SHARDINGS),
    name=st.sampled_from(sorted(DEVICES)),
    count=st.sampled_from([1, 8, 32, 128]),
    trained=st.integers(10**8, 2 * 10**10),
)
def test_what_is_offered_for_a_training_that_does_not_fit_does(sharding, name, count, trained):
    plan = replace(PLAN, work=replace(WORK, trained=trained), sharding=sharding, device=DEVICES[name], count=count)
    for remedy in remedies(plan) if plan.excess_bytes > 0 else ():
        changed = plan
        for part in remedy.split(" with "):
            if part == "activation_checkpointing: true":
                changed = replace(changed, training=replace(TRAINING, activation_checkpointing=True))
            elif part.startswith("accumulation: "):
                training = replace(TRAINING, accumulation=int(part.removeprefix("accumulation: ")))
                changed = replace(changed, training=training)
            elif part.endswith(" devices"):
                changed = replace(changed, count=int(part.removesuffix(" devices")))
            else:
                changed = replace(changed, sharding=next(one for one in SHARDINGS if one.name == part))
        assert changed.excess_bytes <= 0
        assert changed.rows >= 1


def test_a_large_model_on_few_devices_says_what_is_missing():
    plan = replace(PLAN, work=replace(WORK, activations=5e9))
    assert plan.excess_bytes == pytest.approx(plan.memory.total + 4 * GB - 80 * GB)
    assert plan.excess_bytes > 0
    assert list(remedies(plan)) == [
        "ZeRO-2", "activation_checkpointing: true", "accumulation: 2", "128 devices"
    ]  # fmt: skip
    assert list(remedies(replace(plan, device=replace(plan.device, memory_bytes=24 * GB)))) == [
        "ZeRO-3 with accumulation: 4"
    ]


@pytest.mark.parametrize("text", ["H100", "0xH100", "64 H100", "64xH-100", "-1xH100"])
def test_other_forms_of_devices_are_refused(text):
    with pytest.raises(ConfigurationError, match=r"NUMBERxNAME, for example 64xH100"):
        parse_devices(text)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigurationError, match="a batch of 256 rows does not divide into 3 workers"):
        _ = replace(PLAN, count=3).rows


def test_activation_checkpointing_takes_a_forward_pass_and_less_memory():
    again = replace(PLAN, training=replace(TRAINING, activation_checkpointing=True))
    assert again.compute_seconds == pytest.approx(4 / 3 * PLAN.compute_seconds)
    assert again.memory.activations == PLAN.memory.activations * 1e7 / WORK.activations
    assert again.mfu < PLAN.mfu  # what is computed twice does not count
