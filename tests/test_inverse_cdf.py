"""Draws by weight are those that sums over the whole vocabulary give, of a small vocabulary and of a large one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edlm.inverse_cdf import BLOCK, LARGE, draw_by_weight

F64 = torch.float64
LAST = 1 - 2**-53  # the largest number below one
sizes = st.sampled_from([1, 2, 6, LARGE - 1, LARGE, LARGE + 1, 20 * BLOCK, 31 * BLOCK - 1])


def weights(seed: int, rows: int, size: int, without: float, dtype: torch.dtype = F64) -> Tensor:
    """Weights over ten orders of magnitude, that share of them without any; a row has at least one."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.empty(rows, size, dtype=F64).log_normal_(std=5, generator=generator)
    p[torch.rand(rows, size, generator=generator) < without] = 0
    p[torch.arange(rows), torch.randint(size, (rows,), generator=generator)] = 1
    return p.to(dtype)


def numbers(seed: int, rows: int, k: int) -> Tensor:
    u = torch.rand(rows, k, generator=torch.Generator().manual_seed(seed), dtype=F64)
    u[:, 0], u[:, -1] = 0, LAST
    return u


@settings(deadline=None)
@given(seed=st.integers(0, 9999), size=sizes, without=st.sampled_from([0.0, 0.5, 0.99]))
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (F64, 1e-14)])
def test_a_token_is_the_first_at_which_the_weights_so_far_exceed_its_number(dtype, rounding, seed, size, without):
    p, u = weights(seed, 3, size, without, dtype), numbers(seed + 1, 3, 12)
    kept = p.clone()
    tokens = draw_by_weight(p, u)
    assert torch.equal(p, kept)
    share = p.double() / p.double().sum(dim=-1, keepdim=True)
    after = share.cumsum(dim=-1)
    before = after - share
    assert (p.gather(-1, tokens) > 0).all()
    assert (before.gather(-1, tokens) <= u + rounding).all()
    assert (u < after.gather(-1, tokens) + rounding).all()


@pytest.mark.parametrize("size", [5, LARGE, LARGE + 3])
def test_a_token_without_weight_is_never_drawn_and_one_at_an_edge_always_can_be(size):
    p = torch.zeros(1, size, dtype=F64)
    p[0, [1, 3]] = 0.5
    u = torch.tensor([[0.0, 1e-300, 0.25, 0.5, 0.75, LAST]], dtype=F64)
    assert draw_by_weight(p, u).tolist() == [[1, 1, 1, 3, 3, 3]]
    assert draw_by_weight(7 * p, u).tolist() == [[1, 1, 1, 3, 3, 3]]  # weights need no sum of one
    p[0] = 0
    p[0, [0, size - 1]] = 0.5
    edges = torch.tensor([[0.0, 0.5, LAST, 1.0]], dtype=F64)  # one as rounding may give it
    assert draw_by_weight(p, edges).tolist() == [[0, size - 1, size - 1, size - 1]]


def test_a_number_at_the_edge_of_a_block_draws_no_token_without_weight():
    """0.1 + 0.3 - 0.3 is more than 0.1, so that the number lies before its block by rounding."""
    p = torch.zeros(1, LARGE, dtype=F64)
    p[0, 0], p[0, BLOCK + 5] = 0.1, 0.3
    assert draw_by_weight(p, torch.tensor([[0.25]], dtype=F64)).item() == BLOCK + 5


@pytest.mark.parametrize("size", [BLOCK, 5 * LARGE])
def test_rare_tokens_behind_a_common_one_keep_their_share_in_float32(size):
    """Each of them is below the rounding of the sum of all."""
    p = torch.full((1, size), 1e-12)
    p[0, 0] = 1
    rare = (size - 1) * 1e-12 / (1 + (size - 1) * 1e-12)
    u = 1 - rare * torch.linspace(0.999, 0.001, 9, dtype=F64)[None]
    tokens = draw_by_weight(p, u)[0].double() / size
    assert torch.equal(tokens > 0, torch.ones(9, dtype=torch.bool))
    # of the first block alone the sum, which holds the common token, has lost them
    lost = BLOCK if size >= LARGE else 1.5
    torch.testing.assert_close(tokens, torch.linspace(0.001, 0.999, 9, dtype=F64), atol=lost / size, rtol=0)


@pytest.mark.parametrize("size", [7, LARGE, 20 * BLOCK + 5])
def test_a_token_depends_on_its_row_and_its_number_alone(size):
    p, u = weights(0, 5, size, 0.1, torch.float32), numbers(1, 5, 70)
    tokens = draw_by_weight(p, u)
    for row in range(5):
        for j in (0, 1, 33, 69):
            assert draw_by_weight(p[row : row + 1], u[row : row + 1, j : j + 1]).item() == tokens[row, j]
    assert draw_by_weight(p[:0], u[:0]).shape == (0, 70)


@pytest.mark.parametrize("size", [7, LARGE])
def test_weights_that_are_no_numbers_spoil_no_other_row(size):
    p, u = weights(0, 2, size, 0, torch.float32), numbers(1, 2, 3)
    expected = draw_by_weight(p, u)
    p[0] = torch.nan
    tokens = draw_by_weight(p, u)
    assert torch.equal(tokens[1], expected[1])
    assert ((tokens >= 0) & (tokens < size)).all()
