"""Figures of docs/scaling.md: what they draw follows from the planner, and the page shows all of them and no other."""

import re

import pytest

from edlm.training.flops import transformer_flop
from tests.paths import PROJECT
from workflows.benchmarking import scaling
from workflows.benchmarking.scaling_curves import (
    DEVICE,
    LENGTH,
    STEP,
    TEXTS,
    WHOLE,
    Assumptions,
    generated,
    generation_curves,
    networks,
    plan,
    trained,
    training_curves,
)

SMALLEST = (256, 4)
PAGE = (PROJECT / "docs/scaling.md").read_text(encoding="utf-8")


def test_more_devices_take_less_time_and_memory_and_cost_more():
    needs = [trained(plan(SMALLEST, count=count)) for count in (1, 8, 64, 512)]
    assert [one.time for one in needs] == sorted((one.time for one in needs), reverse=True)
    assert [one.memory_gb for one in needs] == sorted((one.memory_gb for one in needs), reverse=True)
    assert [one.device_hours for one in needs] == sorted(one.device_hours for one in needs)


def test_activations_grow_with_the_length_only_once_a_row_is_a_micro_step():
    short, longest_in_parts, whole = (plan(SMALLEST, length=length) for length in (1024, 8192, 16_384))
    assert (short.rows, longest_in_parts.rows, whole.rows) == (8, 1, 1)
    assert short.memory.activations == longest_in_parts.memory.activations
    assert whole.memory.activations == 2 * longest_in_parts.memory.activations


def test_a_negative_takes_as_much_as_a_text_of_the_data():
    one, three, five = (plan(SMALLEST, kind=WHOLE, negatives=negatives).work for negatives in (1, 3, 5))
    assert (three.activations, five.activations) == (2 * one.activations, 3 * one.activations)
    assert five.flop - three.flop == three.flop - one.flop > 0


def test_the_plan_of_a_denoiser_is_the_same_after_that_of_an_energy_which_freezes_it():
    before = trained(plan(SMALLEST))
    plan(SMALLEST, kind=STEP)
    assert trained(plan(SMALLEST)) == before


def test_a_generation_takes_a_pass_per_step_and_no_more_memory():
    few, many = (generated(SMALLEST, None, steps=steps) for steps in (4, 20))
    denoise = transformer_flop(networks(SMALLEST)[0].config, LENGTH, LENGTH)
    seconds = TEXTS * 16 * denoise / (DEVICE.bfloat16_flops * Assumptions().mfu)
    assert many.time - few.time == pytest.approx(seconds)
    assert many.memory_gb == few.memory_gb


def test_a_step_energy_scores_every_position_once_and_one_of_whole_sequences_in_every_step():
    def added(kind: str, steps: int) -> float:
        return generated(SMALLEST, kind, steps=steps).time - generated(SMALLEST, None, steps=steps).time

    assert added(STEP, 64) == pytest.approx(added(STEP, 1))
    assert added(WHOLE, 64) > 60 * added(WHOLE, 1)


def test_candidates_of_a_step_energy_take_time_and_little_memory():
    few, many = (generated(SMALLEST, STEP, candidates=candidates) for candidates in (2, 64))
    assert many.time > 2 * few.time
    assert few.memory_gb < many.memory_gb < 2 * few.memory_gb


def test_time_memory_and_cost_are_drawn_against_everything_that_grows(tmp_path, capsys):
    assert list(training_curves()) == ["parameters", "L", "|V|", "K, negatives", "devices"]
    assert list(generation_curves()) == ["parameters", "L", "|V|", "k, candidates", "T, steps"]
    scaling.main(["--folder", str(tmp_path)])
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(re.findall(r"\((scaling-\w+\.png)\)", PAGE))
    assert drawn == {path.name for path in (PROJECT / "docs").glob("scaling-*.png")}
    assert "6.9e+09 parameters, 2.5e+11 tokens: 16,842 device-hours" in capsys.readouterr().out
    assert "6.9e9 parameters on 1 TB of text, once, take 16,800 device-hours" in PAGE


def test_help_draws_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        scaling.main(["--folder", str(tmp_path), "--help"])
    assert ended.value.code == 0
    assert list(tmp_path.iterdir()) == []
    assert "--folder" in capsys.readouterr().out
