"""Progress lines say why a training ended before its last step, and nothing of a request that ended it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.training.early_stopping import unvalidated
from edlm.training.progress import ProgressLines, say_emulation
from tests.toy import training


def lines_at_the_end(validation: torch.Tensor, **settings: Any) -> list[str]:
    output: list[str] = []
    engine: Any = SimpleNamespace(step=7, validation=validation)
    ProgressLines("pretrain", training(**settings), 16, output.append).stop(engine)
    return output


@pytest.mark.parametrize("settings", [{}, {"validate_every": 2, "early_stopping_patience": 3}])
def test_a_training_that_a_request_ended_does_not_say_that_it_stops_early(settings):
    assert lines_at_the_end(unvalidated(), steps=10, **settings) == []


def test_a_training_that_its_validations_ended_says_so():
    validation = torch.tensor([1.5, 3.0])
    (line,) = lines_at_the_end(validation, steps=10, validate_every=2, early_stopping_patience=3)
    assert line == "[pretrain] stops early after step 7: 3 validations in a row were not below 1.5000"


def test_a_training_that_took_all_its_steps_says_nothing():
    validation = torch.tensor([1.5, 3.0])
    assert lines_at_the_end(validation, steps=7, validate_every=2, early_stopping_patience=3) == []


@pytest.mark.parametrize(
    ("instructions", "emulated"),
    [
        ({"avx2": True, "avx512_bf16": False}, True),
        *(({name: True}, False) for name in ("avx512_bf16", "amx_tile", "bf16")),
    ],
)
def test_a_training_in_bfloat16_says_that_a_processor_without_instructions_emulates_it(
    instructions, emulated, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    output: list[str] = []
    for precision in ("float32", "bfloat16"):
        say_emulation("pretrain", training(precision=precision), torch.device("cpu"), output.append)
    assert len(output) == emulated
    assert all("bfloat16 is emulated here, more slowly than float32: this cpu has no" in line for line in output)
