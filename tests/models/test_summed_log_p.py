"""The gradient that is computed beside a sum of log-probabilities is autograd's, for any head and number of chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.models import readout
from edlm.models.readout import LMHead
from edlm.published.mdlm import MaskedLMHead

WIDTH, VOCABULARY = 12, 9


def head(kind=LMHead, dtype=torch.float32) -> LMHead:
    made = kind(WIDTH, VOCABULARY)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return made.to(dtype)


def drawn(n: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    features = torch.randn(n, WIDTH, generator=generator).to(dtype)
    return features, torch.randint(VOCABULARY, (n,), generator=generator), torch.randn(n, generator=generator).double()


def gradients(made: LMHead, features, total) -> list[torch.Tensor]:
    return list(torch.autograd.grad(3 * total, [features, made.weight, made.bias]))


@pytest.mark.parametrize("kind", [LMHead, MaskedLMHead])
@given(n=st.integers(0, 40), chunk=st.sampled_from([1, 8 * VOCABULARY + 8, 2**24]))
@settings(max_examples=8, deadline=None)
def test_values_and_gradients_are_those_of_autograd(kind, n, chunk):
    whole, readout.CHUNK = readout.CHUNK, chunk
    try:
        features, tokens, weights = drawn(n)
        made = head(kind)
        features.requires_grad_()
        total, log_p = made.log_p_sum(features, tokens, weights)
        expected = made.log_p_of(features, tokens)
        assert torch.equal(log_p, expected)
        assert not log_p.requires_grad
        torch.testing.assert_close(total, (weights * expected).sum())
        plain = gradients(made, features, (weights * expected).sum())
        for actual, value in zip(gradients(made, features, total), plain, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-4, atol=1e-5)
    finally:
        readout.CHUNK = whole


def test_in_bfloat16_the_gradients_are_those_of_float32_up_to_its_rounding(monkeypatch):
    monkeypatch.setattr(readout, "CHUNK", 1)
    made = head(dtype=torch.bfloat16)
    features, tokens, weights = drawn(64, torch.bfloat16)
    features.requires_grad_()
    total, _ = made.log_p_sum(features, tokens, weights)
    actual = gradients(made, features, total)
    exact, wide = head().requires_grad_(), features.detach().float().requires_grad_()
    exact.load_state_dict({name: value.float() for name, value in made.state_dict().items()})
    expected = gradients(exact, wide, exact.log_p_sum(wide, tokens, weights)[0])
    for mine, value in zip(actual, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - value).norm() <= 0.01 * value.norm()


def test_frozen_weights_and_no_gradient_cost_none():
    made = head().requires_grad_(False)
    features, tokens, weights = drawn(16)
    features.requires_grad_()
    made.log_p_sum(features, tokens, weights)[0].backward()
    assert features.grad is not None
    assert made.weight.grad is None
    with torch.no_grad():
        assert not made.log_p_sum(features, tokens, weights)[0].requires_grad


def test_draws_beside_given_tokens_are_those_of_separate_calls():
    made, (features, tokens, _) = head(), drawn(24)
    u = torch.rand(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn_tokens, log_p, given_log_p = made.draw_beside(features, tokens, u)
    assert torch.equal(drawn_tokens, made.draw(features, u)[0])
    assert torch.equal(log_p, made.draw(features, u)[1])
    assert torch.equal(given_log_p, made.log_p_of(features, tokens))
