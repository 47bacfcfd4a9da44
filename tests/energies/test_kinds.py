import itertools

import pytest
import torch

from edlm import equations
from edlm.config import ConfigurationError
from edlm.cooperative import run_to_end
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import AutoregressiveEnergyConfig, BidirectionalEnergyConfig, CarryOverEnergyConfig
from edlm.models.transformer import TransformerConfig
from edlm.sampling.candidates import propose
from tests.networks import autoregressive, denoiser, stirred

V, L = 5, 12
CONFIGS = {
    "step in blocks": StepEnergyConfig(block=4, width=16, layers=2, heads=2),
    "step whole": StepEnergyConfig(block=None, width=16, layers=1, heads=2),
    "conditional": ConditionalEnergyConfig(width=16, layers=2, heads=2),
    "conditional, far": ConditionalEnergyConfig(width=16, layers=2, heads=2, left=3, right=2),
    "residual": ResidualEnergyConfig(width=16, layers=1, heads=2),
    "bidirectional": BidirectionalEnergyConfig(),
    "ar": AutoregressiveEnergyConfig(),
    "coar": CarryOverEnergyConfig(),
}


def borrowed(config, net):
    """The model that an energy is built on."""
    return CONFIGS["conditional"].build(net) if config.needs_energy else autoregressive(V)


def situation(config, k: int = 3, b: int = 4):
    """A denoiser, an energy with stirred weights, and candidates at positions that differ from row to row."""
    net = denoiser(V)
    energy = stirred(config.build(net, borrowed(config, net)), seed=3)
    g = torch.Generator().manual_seed(4)
    masked = torch.rand(b, L, generator=g) < torch.linspace(0.2, 1.0, b)[:, None]
    xt = torch.where(masked, net.mask, torch.randint(V, (b, L), generator=g))
    new = masked if energy.whole_sequence else masked & (torch.rand(b, L, generator=g) < 0.6)
    t = torch.linspace(0.2, 1.0, b, dtype=torch.float64)
    context = net.read(xt, t)
    u = torch.rand(b, k, L, generator=g, dtype=torch.float64)
    x, by_position = propose(net, context, xt, new, u)
    return net, energy, (x, xt, t, equations.sum_by_group(by_position, energy.block), context)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_energies_have_one_value_for_each_candidate_and_group(config):
    _, energy, arguments = situation(config)
    values = energy(*arguments)
    assert values.shape == (4, 3, equations.group_count(L, energy.block))
    assert values.isfinite().all()
    assert not torch.allclose(values[:, 0], values[:, 1])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_candidates_energy_depends_on_its_own_row_alone_to_the_last_bit(config):
    _, energy, (x, xt, t, log_p, context) = situation(config)
    together = energy(x, xt, t, log_p, context)
    for row in range(len(x)):
        one = slice(row, row + 1)
        assert torch.equal(energy(x[one], xt[one], t[one], log_p[one], context[one]), together[one])
    order = torch.tensor([2, 0, 1])
    assert torch.equal(energy(x[:, order], xt, t, log_p[:, order], context), together[:, order])


@pytest.mark.parametrize("name", ["step in blocks", "step whole", "conditional", "residual", "bidirectional"])
def test_before_training_the_model_is_plain_diffusion(name):
    net = denoiser(V)
    energy = CONFIGS[name].build(net, borrowed(CONFIGS[name], net))
    _, _, (x, xt, t, log_p, context) = situation(CONFIGS[name])
    values = energy.eval()(x, xt, t, log_p, context)
    torch.testing.assert_close(values, torch.zeros_like(values), atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", [CONFIGS["step in blocks"], CONFIGS["step whole"], CONFIGS["conditional, far"]])
def test_padding_and_packing_change_no_energy(config):
    _, energy, arguments = situation(config)
    packed = energy(*arguments)
    torch.testing.assert_close(energy.train()(*arguments), packed, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("name", ["conditional", "conditional, far"])
def test_the_conditional_law_is_normalised_and_its_energy_is_the_log_ratio(name):
    net, energy, (_, xt, t, _, context) = situation(CONFIGS[name])
    new = torch.zeros_like(xt, dtype=torch.bool)
    for row in range(len(xt)):
        new[row, torch.nonzero(xt[row] == net.mask)[:3, 0]] = True
    every = torch.tensor(list(itertools.product(range(V), repeat=3)))
    for row in range(len(xt)):
        count = int(new[row].sum())
        x = xt[row].repeat(V**count, 1)
        x[:, new[row]] = every[: V**count, 3 - count :]
        one = slice(row, row + 1)
        log_p_c = energy.log_p(x[None], xt[one], context[one])
        torch.testing.assert_close(log_p_c.exp().sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
        log_p = torch.randn(1, len(x), 1)
        torch.testing.assert_close(energy(x[None], xt[one], t[one], log_p, context[one]), log_p - log_p_c[..., None])


@pytest.mark.parametrize("name", ["conditional", "conditional, far"])
def test_exact_draws_of_the_conditional_law_follow_it(name):
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
    told = energy.log_p(drawn[None], xt[row : row + 1], context[row : row + 1])[0]
    torch.testing.assert_close(log_p.sum(dim=1), told, atol=1e-5, rtol=1e-5)
    code = (drawn[:, where] * torch.tensor([V * V, V, 1])).sum(1)
    every = torch.tensor(list(itertools.product(range(V), repeat=3)))
    x = xt[row].repeat(V**3, 1)
    x[:, where] = every
    expected = n * energy.log_p(x[None], xt[row : row + 1], context[row : row + 1])[0].exp().double()
    chi_square = ((torch.bincount(code, minlength=V**3) - expected) ** 2 / expected.clamp(min=1e-9))[expected > 5].sum()
    assert chi_square < 1.6 * int((expected > 5).sum())


def test_the_autoregressive_energies_count_the_first_token_and_carry_over_counts_masked_ones_alone():
    model = autoregressive(V)
    net, ar, (x, xt, t, log_p, context) = situation(CONFIGS["ar"])
    coar = CONFIGS["coar"].build(net, model)
    by_position = model.log_p(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    torch.testing.assert_close(
        CONFIGS["ar"].build(net, model)(x, xt, t, log_p, context), log_p - by_position.sum(-1, keepdim=True)
    )
    masked = (xt == net.mask)[:, None]
    torch.testing.assert_close(coar(x, xt, t, log_p, context), log_p - (by_position * masked).sum(-1, keepdim=True))
    assert ar.whole_sequence
    assert coar.whole_sequence


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_energies_compute_in_bfloat16(config):
    net, energy, (x, xt, t, log_p, _) = situation(config)
    net, energy = net.bfloat16(), energy.bfloat16()
    assert energy(x, xt, t, log_p, net.read(xt, t)).isfinite().all()


def test_an_energy_that_is_built_on_another_model_needs_it():
    with pytest.raises(
        ConfigurationError, match="'coar' is built on a model of class AutoregressiveModel, and none was given"
    ):
        CarryOverEnergyConfig().build(denoiser(), None)
    with pytest.raises(
        ConfigurationError, match="'residual' is built on a model of class ConditionalEnergy, and AutoregressiveModel"
    ):
        ResidualEnergyConfig().build(denoiser(), autoregressive(V))


@torch.no_grad()
def test_the_papers_energy_reads_both_texts_at_their_time_and_pools_by_the_mean():
    trunk = TransformerConfig(width=16, layers=2, heads=2, time_conditioning=True)
    net = denoiser(V, trunk)
    energy = stirred(BidirectionalEnergyConfig().build(net, None), seed=3)
    _, _, (x, xt, t, log_p, context) = situation(CONFIGS["bidirectional"])
    found = energy(x, xt, t, log_p, context)
    for row, k in itertools.product(range(len(x)), range(x.shape[1])):
        pair = torch.cat([energy.embedding(xt[row]), energy.embedding(x[row, k])], dim=-1) @ energy.project.weight.T
        pooled = energy.transformer(pair[None], t[row : row + 1])[0].mean(dim=0)
        torch.testing.assert_close(found[row, k, 0], pooled @ energy.scalar.weight, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_papers_energy_begins_as_the_denoiser_on_the_filled_text():
    net = denoiser(V)
    energy = BidirectionalEnergyConfig().build(net, None).eval()
    _, _, (x, xt, t, _, _) = situation(CONFIGS["bidirectional"])
    pair = energy.project(energy.embedding(xt)[:, None], energy.embedding(x))
    for k in range(x.shape[1]):
        torch.testing.assert_close(energy.transformer(pair[:, k], t), net.read(x[:, k], t), atol=1e-5, rtol=1e-5)
    assert energy.embedding.weight is not net.embedding.weight  # a copy, to be trained on its own
