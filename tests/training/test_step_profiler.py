"""A window of steps is profiled, and one beyond the run is refused when the settings are read."""

import json

import pytest
import torch

from edlm.config import ConfigurationError, parse
from edlm.training.settings import ProfileWindow, Training
from edlm.training.step_profiler import OPERATORS, TRACE, StepProfiler
from tests.toy import training


def test_the_steps_of_the_window_are_in_the_trace_and_no_others():
    kept: dict[str, str] = {}
    profiler = StepProfiler(ProfileWindow(first=1, steps=2), kept.__setitem__)
    for step in range(4):
        for _ in range(2):  # micro-steps
            profiler.before(step)
            torch.zeros(step + 1) @ torch.ones(step + 1)
    names = [event.get("name") for event in json.loads(kept[TRACE])["traceEvents"]]
    assert names.count("aten::dot") == 4
    assert "aten::dot" in kept[OPERATORS]
    profiler.close()
    assert len(kept) == 2


def test_a_window_to_the_last_step_ends_with_the_training():
    kept: dict[str, str] = {}
    profiler = StepProfiler(ProfileWindow(first=0, steps=1), kept.__setitem__)
    profiler.before(0)
    assert not kept
    profiler.close()
    assert set(kept) == {TRACE, OPERATORS}


def test_a_window_beyond_the_run_is_refused():
    assert training(steps=6, profile=ProfileWindow(first=3, steps=3)).profile is not None
    with pytest.raises(ConfigurationError, match=r"profile: its last step is 6, .* and the last of steps: 6 is 5"):
        parse(Training, {"steps": 6, "batch": 8, "profile": {"first": 4, "steps": 3}})
