"""The light heads are what their definitions say, computed here position by position, without packing."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from edlm import equations
from edlm.cooperative import run_to_end
from edlm.energies.conditional import ConditionalEnergy, ConditionalEnergyConfig, Neighbours
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergy, StepEnergyConfig
from edlm.sampling.candidates import draw_candidates, propose
from tests.networks import denoiser, stirred

V, L, ROWS, K = 5, 10, 7, 3
EDGE = V + 1
CONFIGS = {
    "step in blocks": StepEnergyConfig(block=4, width=16, layers=2, heads=2),
    "step whole": StepEnergyConfig(block=None, width=16, layers=1, heads=2),
    "conditional": ConditionalEnergyConfig(width=16, layers=2, heads=2),
    "conditional, far": ConditionalEnergyConfig(width=16, layers=2, heads=2, left=3, right=2),
    "residual": ResidualEnergyConfig(width=16, layers=1, heads=2),
}
STEPS = [name for name in CONFIGS if not name.startswith("conditional")]


def built(name: str):
    """A denoiser and the energy on it, with stirred weights."""
    net = denoiser(V)
    proposal = CONFIGS["conditional"].build(net) if name == "residual" else None
    return net, stirred(CONFIGS[name].build(net, proposal), seed=3)


@torch.no_grad()
def situation(net):
    """Candidates at positions that differ from row to row: nothing new, all of it, each edge alone, and at random."""
    g = torch.Generator().manual_seed(4)
    masked = torch.rand(ROWS, L, generator=g) < 0.7
    new = masked & (torch.rand(ROWS, L, generator=g) < 0.6)
    masked[:4], new[:4] = True, False
    new[1], new[2, 0], new[3, -1] = True, True, True
    xt = torch.where(masked, net.mask, torch.randint(V, (ROWS, L), generator=g))
    x = torch.where(new[:, None], torch.randint(V, (ROWS, K, L), generator=g), xt[:, None])
    t = torch.linspace(0.2, 1.0, ROWS, dtype=torch.float64)
    return x, xt, t, new, net.read(xt, t)


def beside(text: list[int], at: int, offset: int) -> int:
    """The token at `offset` from a place, the edge's id beyond the canvas."""
    return text[at + offset] if 0 <= at + offset < len(text) else EDGE


def through(head, z: Tensor, positions: list[int], causal: bool) -> Tensor:
    """The layers on one sequence [m h]."""
    turn = head.layers.turn(torch.tensor(positions)[None])
    for layer in head.layers:
        z = layer(z[None], turn, causal=causal)[0]
    return head.norm(z)


@torch.no_grad()
@pytest.mark.parametrize("name", STEPS)
def test_a_step_energy_is_the_sum_over_new_positions_of_a_head_that_is_told_their_neighbours(name):
    net, energy = built(name)
    head: StepEnergy = energy.head if name == "residual" else energy
    x, xt, t, new, context = situation(net)
    log_p = torch.zeros(ROWS, K, equations.group_count(L, energy.block))
    found, size = energy(x, xt, t, log_p, context), energy.block or L
    for row, k, group in itertools.product(range(ROWS), range(K), range(log_p.shape[2])):
        members = [at for at in range(group * size, min(L, (group + 1) * size)) if new[row, at]]
        text = xt[row].tolist()
        for at in members:  # those of other groups are masks to it
            text[at] = int(x[row, k, at])
        told = [[beside(text, at, offset) for at in members] for offset in (0, -1, 1)]
        wanted = torch.zeros(())
        if members:
            z = head.features(context[row, members])
            for table, tokens in zip((head.own, head.left, head.right), told, strict=True):
                z = z + table(torch.tensor(tokens))
            wanted = (through(head, z, members, causal=False) * head.scalar.weight).sum()
        torch.testing.assert_close(found[row, k, group], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["conditional", "conditional, far"])
def test_a_conditional_law_is_a_chain_over_the_new_positions_in_reading_order(name):
    net, energy = built(name)
    config = CONFIGS[name]
    assert isinstance(energy, ConditionalEnergy)
    x, xt, t, new, context = situation(net)
    log_p = torch.randn(ROWS, K, 1, generator=torch.Generator().manual_seed(5))
    found, far = energy(x, xt, t, log_p, context), range(-config.left, -1)
    tables = None if energy.near is None else energy.near.weight.view(-1, V + 2, 16)
    for row, k in itertools.product(range(ROWS), range(K)):
        members = torch.nonzero(new[row])[:, 0].tolist()
        known, text = xt[row].tolist(), x[row, k].tolist()
        wanted = torch.zeros(())
        if members:
            z = energy.features(context[row, members])
            z = z + energy.last(torch.tensor([EDGE, *(text[at] for at in members[:-1])]))
            z = z + energy.left(torch.tensor([beside(text, at, -1) for at in members]))
            for table, offset in enumerate([*far, *range(1, config.right + 1)]):
                tokens = [beside(text if offset < 0 else known, at, offset) for at in members]
                z = z + tables[table, tokens]
            corrected = context[row, members] + energy.correction(through(energy, z, members, causal=True))
            law = net.readout.distribution(corrected)
            wanted = law[torch.arange(len(members)), x[row, k, members]].sum()
        torch.testing.assert_close(found[row, k, 0], log_p[row, k, 0] - wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_energy_is_told_of_either_edge_of_the_canvas_where_the_place_beside_it_is_new(name, side):
    net, energy = built(name)
    head = energy.head if name == "residual" else energy
    x, xt, t, new, context = situation(net)
    log_p = torch.zeros(ROWS, K, equations.group_count(L, energy.block))
    before = energy(x, xt, t, log_p, context)
    getattr(head, side).weight[EDGE] += torch.linspace(-1, 1, 16)
    changed = (energy(x, xt, t, log_p, context) != before).any(dim=2)
    assert torch.equal(changed, new[:, [0 if side == "left" else -1]].expand(-1, K))


@torch.no_grad()
def test_the_candidates_of_a_residual_energy_come_from_its_proposal_and_not_from_the_denoiser():
    net, energy = built("residual")
    _, xt, _, new, context = situation(net)
    u = torch.rand(ROWS, K, L, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    x, log_p = draw_candidates(net, energy, context, xt, new, u)
    for j in range(K):
        drawn, by_position = run_to_end(energy.proposal.draw(xt, new, context, u[:, j]))
        assert torch.equal(x[:, j], drawn)
        torch.testing.assert_close(log_p[:, j, 0], by_position.sum(dim=1))
    assert not torch.equal(x, propose(net, context, xt, new, u)[0])


def test_every_setting_of_a_head_arrives():
    net = denoiser(V)
    step = StepEnergyConfig(block=3, width=24, layers=3, heads=2).build(net)
    conditional = ConditionalEnergyConfig(width=24, layers=3, heads=2, left=4, right=2).build(net)
    residual = ResidualEnergyConfig(width=24, layers=3, heads=2).build(net, conditional)
    for head in (step, conditional, residual.head):
        assert [layer.heads for layer in head.layers] == [2, 2, 2]
        assert head.features.out_features == 24
    assert (step.block, residual.block, residual.head.block) == (3, None, None)
    assert (list(conditional.further_left), list(conditional.right)) == ([-4, -3, -2], [1, 2])
    assert residual.proposal is conditional
    assert not any(weight.requires_grad for weight in conditional.parameters())


def test_an_edge_of_a_table_of_neighbours_is_its_last_id_and_every_offset_has_its_own_table():
    tables = Neighbours(3, EDGE + 1, 4)
    x = torch.tensor([[0, 1, 2, 3]])
    at = torch.tensor([[0, 1, 3]])
    each = tables.weight.detach().view(3, EDGE + 1, 4)
    with torch.no_grad():
        found = tables(at, x, range(-2, 0), 1)
    text = x[0].tolist()
    wanted = [each[1, beside(text, place, -2)] + each[2, beside(text, place, -1)] for place in at[0].tolist()]
    torch.testing.assert_close(found[0], torch.stack(wanted))
    assert isinstance(tables.weight, nn.Parameter)
