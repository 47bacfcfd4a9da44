"""The parts of a step add up to it, and a validation counts in none."""

import time

import pytest
import torch

from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.step_clock import PARTS, StepClock
from tests.cluster.training.zero_worker import held_out
from tests.toy import Toy, rows, training


def test_a_part_lasts_until_the_next_begins_and_the_forward_pass_until_it_ends(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    network = torch.nn.Linear(1, 1)
    clock = StepClock(network)
    clock.begin("data")
    clock.begin("forward")
    network(torch.ones(1))
    clock.begin("update")
    clock.begin(None)
    network(torch.ones(1))  # a validation
    assert clock.taken(2) == pytest.approx(
        {
            "seconds_data": 0.5, "seconds_forward": 1.0, "seconds_backward": 2.0, "seconds_update": 4.0,
            "seconds_communication": 0.0,
        }
    )  # fmt: skip
    assert set(clock.taken(1).values()) == {0.0}


def test_communication_counts_within_a_part_and_takes_nothing_from_it(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 4.0, 8.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = StepClock(torch.nn.Linear(1, 1))
    with clock.communication():  # before the first step
        pass
    clock.begin("update")
    for _ in range(2):
        with clock.communication():
            pass
    clock.begin(None)
    with clock.communication():  # in a validation
        pass
    taken = clock.taken(2)
    assert (taken["seconds_update"], taken["seconds_communication"]) == (5.0, 3.0)
    assert set(clock.taken(1).values()) == {0.0}


def test_the_metrics_of_a_training_have_the_parts_of_its_steps():
    settings, seen, objective = training(validate_every=2, log_every=2), [], Toy()
    clock = StepClock(objective)
    fit(
        LocalEngine(objective, settings), rows, settings, 0, lambda _, metrics: seen.append(metrics), lambda _: None,
        held_out(), clock=clock,
    )  # fmt: skip
    for metrics in seen:
        parts = [metrics[f"seconds_{part}"] for part in PARTS]
        assert all(seconds > 0 for seconds in parts)
        assert sum(parts) <= metrics["seconds_per_step"]
