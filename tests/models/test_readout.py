"""The LM head in bfloat16 keeps the distribution over a large vocabulary."""

import torch

from edlm.models.readout import LMHead

WIDTH, VOCABULARY = 64, 50_257


@torch.no_grad()
def test_in_bfloat16_log_p_is_normalised_and_near_that_of_the_same_weights_in_float64():
    generator = torch.Generator().manual_seed(0)
    head = LMHead(WIDTH, VOCABULARY)
    head.weight.copy_(0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator))
    head.bias.copy_(torch.randn(VOCABULARY, generator=generator))
    head.bfloat16()
    features = torch.randn(8, WIDTH, generator=generator).bfloat16()
    actual = head.distribution(features).double()
    expected = (features.double() @ head.weight.double().T + head.bias.double()).log_softmax(dim=-1)
    assert (actual.exp().sum(dim=-1) - 1).abs().max() < 1e-4
    divergence = (expected.exp() * (expected - actual)).sum(dim=-1)
    assert 0 < divergence.max() < 1e-4
