"""The residual energy: a step energy whose candidates come from a frozen conditional energy."""

import torch

from edlm.cooperative_work import run_to_end
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.sampling.candidates import draw_candidates, propose
from tests.energies.heads import ROWS, K, L, V, built, rows
from tests.networks import denoiser


@torch.no_grad()
def test_its_candidates_come_from_its_proposal_and_not_from_the_denoiser():
    net, energy = built(ResidualEnergyConfig(width=16, layers=1, heads=2))
    _, xt, _, new, context = rows(net)
    u = torch.rand(ROWS, K, L, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    x, log_p = draw_candidates(net, energy, context, xt, new, u)
    for j in range(K):
        drawn, by_position = run_to_end(energy.proposal.draw(xt, new, context, u[:, j]))
        assert torch.equal(x[:, j], drawn)
        torch.testing.assert_close(log_p[:, j, 0], by_position.sum(dim=1))
    assert not torch.equal(x, propose(net, context, xt, new, u)[0])


def test_every_setting_arrives_and_the_proposal_is_frozen():
    net = denoiser(V)
    conditional = ConditionalEnergyConfig(width=16, heads=2).build(net)
    residual = ResidualEnergyConfig(width=24, layers=3, heads=2).build(net, conditional)
    assert [layer.heads for layer in residual.head.layers] == [2, 2, 2]
    assert residual.head.features.out_features == 24
    assert (residual.block, residual.head.block) == (None, None)
    assert residual.proposal is conditional
    assert not any(weight.requires_grad for weight in conditional.parameters())
