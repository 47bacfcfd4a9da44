"""The paper's energies by their definitions."""

import itertools

import torch

from edlm.energies.whole_sequence import AutoregressiveEnergyConfig, BidirectionalEnergyConfig, CarryOverEnergyConfig
from edlm.models.transformer import TransformerConfig
from tests.energies.situation import V, situation
from tests.networks import autoregressive, denoiser, stirred


def test_the_autoregressive_energies_count_the_first_token_and_carry_over_counts_masked_ones_alone():
    model = autoregressive(V)
    net, ar, (x, xt, t, log_p, context) = situation(AutoregressiveEnergyConfig())
    coar = CarryOverEnergyConfig().build(net, model)
    by_position = model.log_p(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    torch.testing.assert_close(
        AutoregressiveEnergyConfig().build(net, model)(x, xt, t, log_p, context),
        log_p - by_position.sum(-1, keepdim=True),
    )
    masked = (xt == net.mask)[:, None]
    torch.testing.assert_close(coar(x, xt, t, log_p, context), log_p - (by_position * masked).sum(-1, keepdim=True))
    assert ar.whole_sequence
    assert coar.whole_sequence


@torch.no_grad()
def test_the_papers_energy_reads_both_texts_at_their_time_and_pools_by_the_mean():
    config = TransformerConfig(width=16, layers=2, heads=2, time_conditioning=True)
    net = denoiser(V, config)
    energy = stirred(BidirectionalEnergyConfig().build(net, None), seed=3)
    _, _, (x, xt, t, log_p, context) = situation(BidirectionalEnergyConfig())
    actual = energy(x, xt, t, log_p, context)
    for row, k in itertools.product(range(len(x)), range(x.shape[1])):
        pair = torch.cat([energy.embedding(xt[row]), energy.embedding(x[row, k])], dim=-1) @ energy.project.weight.T
        pooled = energy.transformer(pair[None], t[row : row + 1])[0].mean(dim=0)
        torch.testing.assert_close(actual[row, k, 0], pooled @ energy.scalar.weight, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_papers_energy_begins_as_the_denoiser_on_the_filled_text():
    net = denoiser(V)
    energy = BidirectionalEnergyConfig().build(net, None).eval()
    _, _, (x, xt, t, _, _) = situation(BidirectionalEnergyConfig())
    pair = energy.project(energy.embedding(xt)[:, None], energy.embedding(x))
    for k in range(x.shape[1]):
        torch.testing.assert_close(energy.transformer(pair[:, k], t), net.read(x[:, k], t), atol=1e-5, rtol=1e-5)
    assert energy.embedding.weight is not net.embedding.weight  # a copy, to be trained on its own
