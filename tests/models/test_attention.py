import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.models.attention import attend


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@settings(deadline=None)
@given(rows=st.integers(1, 3), heads=st.integers(1, 3), length=st.integers(1, 40), channels=st.integers(1, 9))
@torch.no_grad()
def test_products_in_bfloat16_are_attention_up_to_its_grain(rows, heads, length, channels):
    q, k, v = (drawn((rows, heads, length, channels), seed) for seed in range(3))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(attend(q, k, v).float(), exact, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_scores_take_no_more_room_than_the_middle_of_an_mlp(monkeypatch):
    """Beyond l = 4 c torch's own attention is asked, which never holds them."""
    asked = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *rest, **how: asked.append(1) or fused(q, *rest, **how)
    )
    for length in (32, 33):
        attend(*(drawn((1, 2, length, 8), seed) for seed in range(3)))
    assert len(asked) == 1


@torch.no_grad()
@pytest.mark.parametrize("how", [{"causal": True}, {"seen": torch.tensor([[[[True, True, False]]]])}])
def test_what_is_not_to_be_seen_is_not(how):
    q, k, v = (drawn((1, 1, 3, 4), seed) for seed in range(3))
    hidden = v.clone()
    hidden[:, :, 2] += 1
    torch.testing.assert_close(attend(q, k, v, **how)[:, :, :2], attend(q, k, hidden, **how)[:, :, :2])
