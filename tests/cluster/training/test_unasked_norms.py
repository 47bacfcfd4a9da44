"""What is computed in place of DeepSpeed's questions is what it would have computed."""

import math

import pytest
import torch
from deepspeed.runtime import bf16_optimizer, utils
from deepspeed.runtime.zero import stage3, stage_1_and_2
from hypothesis import given
from hypothesis import strategies as st

from cluster.training.unasked_norms import INVALID, _clip, ask_for_no_norm, true_norm


@given(st.floats(0, 100, width=32), st.floats(0.125, 10, width=32))
def test_tensors_are_clipped_as_deepspeed_clips_them(norm, largest):
    given = [torch.tensor([1.0, -2.5, 3e-7]), torch.tensor([[7.0]])]
    ours, theirs = ([tensor.clone() for tensor in given] for _ in range(2))
    for function, tensors in ((_clip, ours), (utils.clip_tensors_by_global_norm, theirs)):
        function(input_tensors=tensors, max_norm=largest, global_norm=torch.tensor(norm), mpu=None)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("norm", [math.inf, -math.inf, math.nan])
def test_deepspeed_marks_a_norm_that_is_not_finite_and_the_mark_is_read_as_infinite(norm):
    marked = torch.tensor(norm)
    utils.mask_nan_or_inf_with_val_inplace(marked, device=marked.device)
    assert marked.item() == INVALID
    assert true_norm(marked).item() == math.inf
    assert true_norm(2.5).item() == 2.5
    assert true_norm(math.nan).isnan()


def test_the_questions_are_where_this_version_of_deepspeed_has_them(monkeypatch):
    for module in (bf16_optimizer, stage_1_and_2, stage3):
        monkeypatch.setattr(module, "is_invalid_grad_norm", utils.is_invalid_grad_norm)  # raises if it is not there
    monkeypatch.setattr(bf16_optimizer, "clip_tensors_by_global_norm", utils.clip_tensors_by_global_norm)
    ask_for_no_norm()
    assert not any(
        module.is_invalid_grad_norm(torch.tensor(math.nan)) for module in (bf16_optimizer, stage_1_and_2, stage3)
    )
    assert bf16_optimizer.clip_tensors_by_global_norm is _clip
