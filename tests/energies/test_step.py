"""Step energies, and the step energy that is the head of a residual one."""

import itertools

import pytest
import torch

from edlm import equations
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergy, StepEnergyConfig
from tests.energies.heads import EDGE, ROWS, K, L, V, beside, built, rows, through
from tests.energies.situation import situation
from tests.networks import denoiser

CONFIGS = {
    "step in blocks": StepEnergyConfig(block=4, width=16, layers=2, heads=2),
    "step whole": StepEnergyConfig(block=None, width=16, layers=1, heads=2),
    "residual": ResidualEnergyConfig(width=16, layers=1, heads=2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_energy_is_the_sum_over_new_positions_of_a_head_that_reads_their_neighbours(name):
    net, energy = built(CONFIGS[name])
    head: StepEnergy = energy.head if name == "residual" else energy
    x, xt, t, new, context = rows(net)
    log_p = torch.zeros(ROWS, K, equations.group_count(L, energy.block))
    actual, size = energy(x, xt, t, log_p, context), energy.block or L
    for row, k, group in itertools.product(range(ROWS), range(K), range(log_p.shape[2])):
        members = [at for at in range(group * size, min(L, (group + 1) * size)) if new[row, at]]
        text = xt[row].tolist()
        for at in members:  # those of other groups are masks to it
            text[at] = int(x[row, k, at])
        tokens_beside = [[beside(text, at, offset) for at in members] for offset in (0, -1, 1)]
        expected = torch.zeros(())
        if members:
            z = head.features(context[row, members])
            for table, tokens in zip((head.own, head.left, head.right), tokens_beside, strict=True):
                z = z + table(torch.tensor(tokens))
            expected = (through(head, z, members, causal=False) * head.scalar.weight).sum()
        torch.testing.assert_close(actual[row, k, group], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_energy_reads_either_edge_of_the_canvas_where_the_position_beside_it_is_new(name, side):
    net, energy = built(CONFIGS[name])
    head = energy.head if name == "residual" else energy
    x, xt, t, new, context = rows(net)
    log_p = torch.zeros(ROWS, K, equations.group_count(L, energy.block))
    before = energy(x, xt, t, log_p, context)
    getattr(head, side).weight[EDGE] += torch.linspace(-1, 1, 16)
    changed = (energy(x, xt, t, log_p, context) != before).any(dim=2)
    assert torch.equal(changed, new[:, [0 if side == "left" else -1]].expand(-1, K))


def test_a_block_does_not_see_the_new_tokens_of_its_neighbours():
    _, energy, (x, xt, t, log_p, context) = situation(CONFIGS["step in blocks"], b=1)
    xt = torch.full_like(xt, V)  # everything is new: every block has new neighbours on both sides
    x = x.clamp(max=V - 1)
    before = energy(x, xt, t, log_p, context)
    other = x.clone()
    other[..., 4:8] = (other[..., 4:8] + 1) % V
    after = energy(other, xt, t, log_p, context)
    assert torch.equal(before[..., [0, 2]], after[..., [0, 2]])
    assert not torch.allclose(before[..., 1], after[..., 1])


@pytest.mark.parametrize("name", ["step in blocks", "step whole"])
def test_a_step_energy_sums_over_the_new_positions_only(name):
    _, energy, (x, xt, t, log_p, context) = situation(CONFIGS[name])
    nothing = xt[:, None].expand_as(x)
    assert torch.equal(energy(nothing, xt, t, log_p, context), torch.zeros_like(log_p, dtype=torch.float32))


@pytest.mark.parametrize("name", ["step in blocks", "step whole"])
def test_padding_and_packing_change_no_step_energy(name):
    _, energy, arguments = situation(CONFIGS[name])
    gathered = energy(*arguments)
    torch.testing.assert_close(energy.train()(*arguments), gathered, atol=1e-5, rtol=1e-5)


def test_every_setting_of_a_step_energy_arrives():
    step = StepEnergyConfig(block=3, width=24, layers=3, heads=2).build(denoiser(V))
    assert [layer.heads for layer in step.layers] == [2, 2, 2]
    assert step.features.out_features == 24
    assert step.block == 3
