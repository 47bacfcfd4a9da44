"""DeepSpeed on two real processes says what one process says, for every stage, precision and objective.

`make test` tries the setups of `USUAL`; those of `ALL` are trained with the tests marked `chaos`.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from edlm.training.local_engine import LocalEngine
from tests import toy
from tests.cluster.training.zero_objectives import LENGTH, VOCABULARY, adapted, objectives, science_rows, uneven_rows
from tests.cluster.training.zero_worker import (
    ADAPTED,
    ALL,
    MATRICES,
    MEASURED,
    SCIENCE,
    UNEVEN,
    USUAL,
    Setups,
    curve,
    held_out,
)
from tests.paths import PROJECT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SECONDS = 360
# One process adds up gradients in another order, and has its bfloat16 weights elsewhere in memory, for other kernels.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-3}


def tried(choose: Callable[[Setups], Iterable[Any]]) -> list[Any]:
    """The parameters of a test: those that are not `USUAL` are marked `chaos`."""
    usual = list(choose(USUAL))
    return [pytest.param(one, marks=() if one in usual else pytest.mark.chaos) for one in choose(ALL)]


SETUPS = tried(lambda setups: [f"{p} {stage}" for p, stages in setups.of_precisions.items() for stage in stages])
VALIDATED_SETUPS = tried(lambda setups: [f"{precision} {stage}" for precision, stage in setups.validated])
STAGES = tried(lambda setups: setups.of_objectives)


@pytest.fixture(scope="module")
def two(request, tmp_path_factory) -> dict:
    """What two workers found."""
    chosen = (item for item in request.session.items if item.path == request.path)
    setups = "all" if any(item.get_closest_marker("chaos") for item in chosen) else "usual"
    output = tmp_path_factory.mktemp("zero") / "curves.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    log = output.with_suffix(".log").open("w")
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.training.zero_worker", str(rank), str(port), str(output), setups],
            cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        codes = [worker.wait(SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
        log.close()
    assert codes == [0, 0], output.with_suffix(".log").read_text()[-4000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("setup", SETUPS)
def test_every_stage_has_the_values_of_one_process(two, setup):
    precision = setup.split()[0]
    # As many micro-steps as two workers have: in bfloat16 each micro-batch's gradient is rounded.
    settings = toy.training(precision=precision, checkpoint_every=3, accumulation=4)
    alone = curve(LocalEngine(toy.Toy(0.0), settings), settings)
    for mine, theirs in zip(two[setup]["without dropout"], alone, strict=True):
        assert mine == pytest.approx(theirs, rel=TOLERANCE[precision] * 10, abs=TOLERANCE[precision])


@pytest.mark.parametrize("stage", tried(lambda setups: setups.summed))
def test_gradients_of_micro_steps_and_workers_are_added_up_in_float32(two, stage):
    assert two["sums"][str(stage)] < 1e-6


@pytest.mark.parametrize("setup", SETUPS)
def test_training_begins_with_the_float32_weights(two, setup):
    assert two[setup]["begun"]


@pytest.mark.parametrize("setup", SETUPS)
def test_a_resumed_training_is_bit_equal(two, setup):
    assert two[setup]["rest"] == two[setup]["full"][3:]
    assert two[setup]["same"]


@pytest.mark.parametrize("setup", VALIDATED_SETUPS)
def test_validation_changes_no_number_of_training(two, setup):
    actual = two["validations"][setup]
    assert actual["unchanged"]
    assert actual["validated"] == actual["plain"]


@pytest.mark.parametrize("setup", VALIDATED_SETUPS)
def test_the_validation_loss_and_the_best_weights_survive_a_restart(two, setup):
    actual = two["validations"][setup]
    assert len(actual["measured"]) == 3
    assert actual["rest"] == actual["measured"][1:]
    assert actual["same"]
    assert actual["best"][0] == min(actual["measured"])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", list(objectives()))
def test_every_objective_is_validated_as_in_one_process_on_the_averages(two, name, stage):
    alone = []
    engine = LocalEngine(objectives()[name](), MEASURED)
    curve(engine, MEASURED, science_rows, validation=held_out(VOCABULARY, LENGTH), measured=alone)
    assert len(alone) == 3
    assert two[f"{name} {stage}"]["measured"] == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_a_state_goes_on_under_another_stage(two):
    for mine, theirs in zip(two["stage 1 to 3"]["rest"], two["float32 1"]["full"][3:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_to_the_host_changes_no_loss(two, stage):
    for mine, theirs in zip(two["offload"][str(stage)], two[f"float32 {stage}"]["full"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_whose_state_is_in_a_folder_has_the_bits_of_one_in_memory(two, precision):
    actual = two["on disk"][precision]
    assert actual["in memory"] == []
    assert actual["disk"] == actual["memory"]
    assert actual["rest"] == actual["memory"][3:]
    measured = actual["measured"]
    assert measured["disk"] == measured["memory"]
    assert measured["rest"] == measured["memory"][1:]
    assert actual["same"]
    assert actual["exported"]
    assert actual["files"] == 0
    assert not actual["lost"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", list(objectives()))
def test_every_objective_has_the_values_of_one_process(two, name, stage):
    alone = curve(LocalEngine(objectives()[name](), SCIENCE), SCIENCE, science_rows)
    for mine, theirs in zip(two[f"{name} {stage}"]["full"], alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", tried(lambda setups: setups.chunked))
def test_zero_3_has_the_values_of_one_process_where_ranks_compute_unequal_numbers_of_chunks_or_none(two, name):
    """A worker gathers the LM head's weight once for all of its chunks; per chunk, ranks would wait for one another."""
    actual = two["chunked"][name]
    alone = curve(LocalEngine(objectives()[name](), UNEVEN), UNEVEN, uneven_rows)
    for mine, theirs in zip(actual["full"], alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert max(actual["numbers"]) > UNEVEN.steps  # several in a step
    assert len(set(actual["numbers"])) == 2


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_train_alone_under_every_stage_as_in_one_process_and_resume_bit_equal(two, stage):
    engine, actual = LocalEngine(adapted(), ADAPTED), two["adaptations"][str(stage)]
    alone = curve(engine, ADAPTED, science_rows)
    for mine, theirs in zip(actual["full"], alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert actual["names"] == sorted(engine.state())
    assert all("lora_" in name for name in engine.names)
    assert actual["same"]


@pytest.mark.parametrize("setup", tried(lambda setups: [f"{precision} {stage}" for precision, stage in setups.of_muon]))
def test_muon_has_the_values_of_one_process_resumes_bit_equal_and_goes_on_under_another_stage(two, setup):
    precision, actual = setup.split()[0], two["muon"][setup]
    settings = replace(MATRICES, precision=precision, accumulation=2)  # as many micro-steps as two workers have
    engine = LocalEngine(objectives()["denoising"](), settings)
    alone = curve(engine, settings, science_rows)
    # Muon's iteration is in bfloat16, which processors with instructions for it sum up in another order.
    tolerance = max(1e-3, TOLERANCE[precision] * 10)
    near = {"rel": tolerance, "abs": tolerance}
    for mine, theirs in zip(actual["full"], alone, strict=True):
        assert mine == pytest.approx(theirs, **near)
    for mine, theirs in zip(actual["moved"], actual["full"][2:], strict=True):
        assert mine == pytest.approx(theirs, **near)
    assert actual["rest"] == actual["full"][2:]
    assert actual["same"]
    assert actual["names"] == sorted(engine.state())
