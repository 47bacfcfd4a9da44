"""Memory, checkpoints and communication of a training follow from its parameters, as engines hold and send them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.planning.training_memory import (
    SHARDINGS,
    Sharding,
    TrainingWork,
    sent_bytes,
    state_bytes,
    training_memory,
)
from edlm.planning.training_work import training_work
from edlm.schedule import LogLinear
from edlm.training.local_engine import LocalEngine
from edlm.training.objectives import Denoising
from edlm.training.settings import Muon, Training
from tests.networks import denoiser

TRAINING = Training(steps=10, batch=64)
WORK = TrainingWork(
    trained=10**9,
    matrices=8 * 10**8,
    frozen=10**8,
    flop=1e15,
    activations=1e8,
    checkpointed=1e7,
    logits=512,
    vocabulary=50_257,
)
trainings = st.builds(
    lambda ema, best, muon: replace(TRAINING, ema=ema, keep_best=best, muon=muon, validate_every=5),
    st.sampled_from([None, 0.9]),
    st.booleans(),
    st.sampled_from([None, Muon()]),
)
shardings = st.sampled_from(SHARDINGS)


@given(training=trainings)
def test_a_checkpoint_has_the_bytes_that_an_engine_saves(training):
    objective = Denoising(denoiser(7), LogLinear(), seed=0)
    engine = LocalEngine(objective, training)
    engine.load({name: torch.zeros(shape) for name, shape in _shapes(engine, training).items()}, step=1)
    held = sum(one.values.nbytes for one in engine.part() if one.name != "validation")
    work = training_work(objective, batch=8, length=8)
    assert work is not None
    assert state_bytes(work, training) == held


def _shapes(engine: LocalEngine, training: Training) -> dict[str, torch.Size]:
    copies = ["weights", *["ema"] * (training.ema is not None), *["best"] * training.keep_best]
    shapes = {
        f"{kind}.{name}": master.shape
        for name, master in zip(engine.names, engine.masters, strict=True)
        for kind in (*copies, *engine.moments[name])
    }
    return shapes | {"validation": engine.validation.shape}


@given(training=trainings, sharding=shardings, devices=st.integers(1, 64), rows=st.integers(1, 64))
def test_more_devices_never_need_more_memory_each(training, sharding, devices, rows):
    few = training_memory(WORK, training, rows, devices, sharding)
    many = training_memory(WORK, training, rows, 2 * devices, sharding)
    assert many.total <= few.total
    assert (many.activations, many.logits) == (few.activations, few.logits)


def test_what_the_stages_shard_is_shared_by_the_devices():
    training = replace(TRAINING, precision="bfloat16", ema=0.9)
    by_stage = {stage: training_memory(WORK, training, 1, 8, Sharding(stage)) for stage in (1, 2, 3)}
    for memory in by_stage.values():
        assert (memory.masters, memory.moments, memory.average) == (4e9 / 8, 8e9 / 8, 4e9 / 8)
    assert [by_stage[stage].gradients for stage in (1, 2, 3)] == [4e9, 4e9 / 8, 4e9 / 8]
    assert by_stage[2].weights == 2 * 1.1e9
    assert training_memory(replace(WORK, trained=10**10), training, 1, 8, Sharding(3)).weights == pytest.approx(
        2 * 1.01e10 / 8 + 2e9  # its share, and what is gathered
    )
    offloaded = training_memory(WORK, training, 1, 8, Sharding(2, offload=True))
    assert (offloaded.masters, offloaded.moments, offloaded.average, offloaded.gradients) == (0, 0, 0, 0)


@given(training=trainings, sharding=shardings, accumulation=st.sampled_from([1, 2, 4]))
def test_one_device_sends_nothing_and_many_at_most_a_whole_round(training, sharding, accumulation):
    training = replace(training, accumulation=accumulation)
    assert sent_bytes(WORK, training, 1, sharding) == 0
    two, many = (sent_bytes(WORK, training, count, sharding) for count in (2, 10**6))
    assert many == pytest.approx(2 * two, rel=1e-5)


def test_an_all_reduce_sends_the_gradients_twice_and_micro_steps_repeat_what_is_not_kept():
    work, twice = replace(WORK, trained=100, matrices=60, frozen=50), replace(TRAINING, accumulation=2)
    assert sent_bytes(work, TRAINING, 4, Sharding(0)) == 2 * 3 / 4 * 400
    assert sent_bytes(work, twice, 4, Sharding(0)) == 2 * 3 / 4 * 400
    assert sent_bytes(work, twice, 4, Sharding(2)) == 3 / 4 * (2 * 400 + 400)
    assert sent_bytes(work, twice, 4, Sharding(3)) == 2 * 3 / 4 * (400 + 2 * 400 + 200)


def test_muon_keeps_one_average_of_a_matrix_and_sums_it_over_the_devices_that_share_it():
    adamw, muon = TRAINING, replace(TRAINING, muon=Muon())
    for stage in range(4):
        one, other = (training_memory(WORK, training, 1, 8, Sharding(stage)) for training in (adamw, muon))
        assert one.moments - other.moments == pytest.approx(8e8 * 4 / (8 if stage else 1))
        assert replace(other, moments=one.moments) == one
        more = sent_bytes(WORK, muon, 8, Sharding(stage)) - sent_bytes(WORK, adamw, 8, Sharding(stage))
        assert more == pytest.approx(2 * 7 / 8 * 8e8 * 4 if stage else 0)


def test_a_network_in_bfloat16_has_no_stage_0():
    assert Sharding(0).of(replace(TRAINING, precision="bfloat16")) == Sharding(1)
    assert Sharding(0).of(TRAINING) == Sharding(0)
