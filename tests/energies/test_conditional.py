"""The conditional energy: a chain over the new positions, normalised, with exact draws."""

import itertools

import pytest
import torch
from torch import nn

from edlm.cooperative_work import run_to_end
from edlm.energies.conditional import ConditionalEnergy, ConditionalEnergyConfig, Neighbours
from tests.energies.heads import EDGE, ROWS, K, V, beside, built, rows, through
from tests.energies.situation import L, situation
from tests.networks import denoiser

CONFIGS = {
    "near": ConditionalEnergyConfig(width=16, layers=2, heads=2),
    "far": ConditionalEnergyConfig(width=16, layers=2, heads=2, left=3, right=2),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


@torch.no_grad()
@pytest.mark.parametrize("config", [*CONFIGS.values(), ConditionalEnergyConfig(width=16, heads=2, left=1, right=1)])
def test_its_distribution_is_a_chain_over_the_new_positions_in_reading_order(config):
    net, energy = built(config)
    assert isinstance(energy, ConditionalEnergy)
    x, xt, t, new, context = rows(net)
    log_p = torch.randn(ROWS, K, 1, generator=torch.Generator().manual_seed(5))
    actual, far = energy(x, xt, t, log_p, context), range(-config.left, -1)
    tables = None if energy.near is None else energy.near.weight.view(-1, V + 2, 16)
    for row, k in itertools.product(range(ROWS), range(K)):
        members = torch.nonzero(new[row])[:, 0].tolist()
        known, text = xt[row].tolist(), x[row, k].tolist()
        expected = torch.zeros(())
        if members:
            z = energy.features(context[row, members])
            z = z + energy.last(torch.tensor([EDGE, *(text[at] for at in members[:-1])]))
            z = z + energy.left(torch.tensor([beside(text, at, -1) for at in members]))
            for table, offset in enumerate([*far, *range(1, config.right + 1)]):
                tokens = [beside(text if offset < 0 else known, at, offset) for at in members]
                z = z + tables[table, tokens]
            corrected = context[row, members] + energy.correction(through(energy, z, members, causal=True))
            table = net.readout.distribution(corrected)
            expected = table[torch.arange(len(members)), x[row, k, members]].sum()
        torch.testing.assert_close(actual[row, k, 0], log_p[row, k, 0] - expected, atol=1e-5, rtol=1e-5)


@every_config
def test_its_distribution_is_normalised_and_its_energy_is_the_log_ratio(name):
    net, energy, (_, xt, t, _, context) = situation(CONFIGS[name])
    new = torch.zeros_like(xt, dtype=torch.bool)
    for row in range(len(xt)):
        new[row, torch.nonzero(xt[row] == net.mask)[:3, 0]] = True
    every = torch.tensor(list(itertools.product(range(V), repeat=3)))
    for row in range(len(xt)):
        count = int(new[row].sum())
        x = xt[row].repeat(V**count, 1)
        x[:, new[row]] = every[: V**count, 3 - count :]
        row_ = slice(row, row + 1)
        log_p_c = energy.log_p(x[None], xt[row_], context[row_])
        torch.testing.assert_close(log_p_c.exp().sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
        log_p = torch.randn(1, len(x), 1)
        torch.testing.assert_close(energy(x[None], xt[row_], t[row_], log_p, context[row_]), log_p - log_p_c[..., None])


@every_config
def test_exact_draws_follow_its_distribution(name):
    net, energy, (_, xt, _, _, context) = situation(CONFIGS[name])
    row = len(xt) - 1
    where = torch.zeros(L, dtype=torch.bool)
    where[[1, 2, 9]] = True
    assert bool((xt[row, where] == net.mask).all())
    n = 20_000
    u = torch.rand(n, L, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = (xt[row].repeat(n, 1), where.repeat(n, 1), context[row].repeat(n, 1, 1))
    drawn, log_p = run_to_end(energy.draw(*many, u))
    assert torch.equal(drawn[:, ~where], many[0][:, ~where])
    assert not log_p[:, ~where].any()
    expected_log_p = energy.log_p(drawn[None], xt[row : row + 1], context[row : row + 1])[0]
    torch.testing.assert_close(log_p.sum(dim=1), expected_log_p, atol=1e-5, rtol=1e-5)
    code = (drawn[:, where] * torch.tensor([V * V, V, 1])).sum(1)
    every = torch.tensor(list(itertools.product(range(V), repeat=3)))
    x = xt[row].repeat(V**3, 1)
    x[:, where] = every
    expected = n * energy.log_p(x[None], xt[row : row + 1], context[row : row + 1])[0].exp().double()
    chi_square = ((torch.bincount(code, minlength=V**3) - expected) ** 2 / expected.clamp(min=1e-9))[expected > 5].sum()
    assert chi_square < 1.6 * int((expected > 5).sum())


def test_padding_and_packing_change_no_energy():
    _, energy, arguments = situation(CONFIGS["far"])
    gathered = energy(*arguments)
    torch.testing.assert_close(energy.train()(*arguments), gathered, atol=1e-5, rtol=1e-5)


def test_every_setting_arrives():
    energy = ConditionalEnergyConfig(width=24, layers=3, heads=2, left=4, right=2).build(denoiser(V))
    assert [layer.heads for layer in energy.layers] == [2, 2, 2]
    assert energy.features.out_features == 24
    assert (list(energy.further_left), list(energy.right)) == ([-4, -3, -2], [1, 2])


def test_an_edge_of_a_table_of_neighbours_is_its_last_id_and_every_offset_has_its_own_table():
    tables = Neighbours(3, EDGE + 1, 4)
    x = torch.tensor([[0, 1, 2, 3]])
    at = torch.tensor([[0, 1, 3]])
    each = tables.weight.detach().view(3, EDGE + 1, 4)
    with torch.no_grad():
        actual = tables(at, x, range(-2, 0), 1)
    text = x[0].tolist()
    expected = [
        each[1, beside(text, position, -2)] + each[2, beside(text, position, -1)] for position in at[0].tolist()
    ]
    torch.testing.assert_close(actual[0], torch.stack(expected))
    assert isinstance(tables.weight, nn.Parameter)
