"""Chunks that share memory have the results of chunks that do not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm import equations
from edlm.inverse_cdf import LARGE
from edlm.models.chunk_memory import ChunkMemory

VOCABULARY = 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, LARGE + 3])
@given(rows=st.lists(st.integers(0, 6), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_results_are_those_of_the_equations_whatever_came_before(dtype, recorded, vocabulary, rows):
    generator, memory = torch.Generator().manual_seed(0), ChunkMemory()
    with torch.set_grad_enabled(recorded):
        for n in rows:
            logits = torch.randn(n, vocabulary, generator=generator).to(dtype)
            u = torch.rand(n, 3, generator=generator, dtype=torch.float64)
            assert torch.equal(memory.log_p(logits), equations.substitute(logits))
            for drawn, expected in zip(memory.draw(logits, u), equations.draw(logits.float(), u), strict=True):
                assert torch.equal(drawn, expected)


def test_while_gradients_are_recorded_every_distribution_stays():
    memory = ChunkMemory()
    first, second = (torch.randn(4, VOCABULARY, requires_grad=True) for _ in range(2))
    kept = memory.log_p(first)
    memory.log_p(second)
    assert torch.equal(kept, equations.substitute(first))
    kept[:, 0].sum().backward()
    assert first.grad is not None
