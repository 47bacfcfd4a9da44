"""What every energy holds. A new one is tested here by being in the union (`tests.networks.KINDS`)."""

import itertools

import pytest
import torch

from edlm import equations
from edlm.config import ConfigurationError, parse, plain
from edlm.cooperative_work import run_to_end
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.interfaces import NormalisedEnergy
from edlm.likelihood.bounds import sampler_bound
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import LogLinear
from tests.energies.situation import L, V, situation
from tests.networks import KINDS, autoregressive, base_of, denoiser, stirred

CONFIGS = KINDS | {"step whole": StepEnergyConfig(block=None)}
NORMALISED = {name for name, config in CONFIGS.items() if config.network.normalised}
every_energy = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@every_energy
def test_a_configuration_reads_back_and_states_what_it_builds(config):
    assert parse(type(config), plain(config)) == config
    net = denoiser(V)
    energy = config.build(net, base_of(config, net))
    assert type(energy) is config.network
    assert energy.block == config.block
    assert energy.normalised == isinstance(energy, NormalisedEnergy)
    assert any(weight.requires_grad for weight in energy.parameters()) or not config.trained


@every_energy
def test_an_energy_that_is_built_on_another_model_needs_it_and_no_other_does(config):
    if config.built_on is None:
        config.build(denoiser(V), None)
        return
    assert config.needs_autoregressive != config.needs_energy
    for other in (None, denoiser(V)):
        with pytest.raises(ConfigurationError, match=f"is built on a model of class {config.built_on.__name__}, and"):
            config.build(denoiser(V), other)


@pytest.mark.parametrize(
    "kind", [config for config in KINDS.values() if hasattr(config, "heads")], ids=lambda c: c.kind
)
def test_a_head_whose_width_does_not_divide_among_its_heads_is_refused_before_it_is_built(kind):
    with pytest.raises(ConfigurationError, match="width 20 must be a multiple of 2 x heads = 8"):
        parse(type(kind), {"kind": kind.kind, "width": 20, "heads": 4})


def test_the_error_names_what_was_given_instead():
    with pytest.raises(ConfigurationError, match="of class ConditionalEnergy, and AutoregressiveModel was given"):
        ResidualEnergyConfig().build(denoiser(), autoregressive(V))


@every_energy
def test_energies_have_one_value_for_each_candidate_and_group(config):
    _, energy, arguments = situation(config)
    values = energy(*arguments)
    assert values.shape == (4, 3, equations.group_count(L, energy.block))
    assert values.isfinite().all()
    assert not torch.allclose(values[:, 0], values[:, 1])


@every_energy
def test_a_candidates_energy_depends_on_its_own_row_alone_to_the_last_bit(config):
    _, energy, (x, xt, t, log_p, context) = situation(config)
    together = energy(x, xt, t, log_p, context)
    for row in range(len(x)):
        alone = slice(row, row + 1)
        assert torch.equal(energy(x[alone], xt[alone], t[alone], log_p[alone], context[alone]), together[alone])
    order = torch.tensor([2, 0, 1])
    assert torch.equal(energy(x[:, order], xt, t, log_p[:, order], context), together[:, order])


@every_energy
def test_energies_compute_in_bfloat16(config):
    net, energy, (x, xt, t, log_p, _) = situation(config)
    net, energy = net.bfloat16(), energy.bfloat16()
    assert energy(x, xt, t, log_p, net.read(xt, t)).isfinite().all()


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.trained])
def test_before_training_the_model_is_plain_diffusion(name):
    net, config = denoiser(V), CONFIGS[name]
    energy = config.build(net, base_of(config, net))
    _, _, (x, xt, t, _, context) = situation(config)
    new = (xt == net.mask) & (x[:, 0] != net.mask)
    by_position = torch.stack([net.log_p_of(context, new, x[:, j]) for j in range(x.shape[1])], dim=1)
    log_p = equations.sum_by_group(by_position, energy.block)
    values = energy.eval()(x, xt, t, log_p, context)
    torch.testing.assert_close(values, torch.zeros_like(values), atol=2e-5, rtol=0)


# ---------------------------------------------------------------- as a sampler, over all texts of two symbols

SYMBOLS, LENGTH = 2, 3
TEXTS = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=LENGTH)))


def model(config):
    net = denoiser(SYMBOLS)
    return net, stirred(config.build(net, base_of(config, net)), seed=3, scale=0.1)


@pytest.mark.parametrize("name", sorted(NORMALISED))
def test_a_normalised_energy_has_z_1_and_draws_with_the_log_probability_of_its_energy(name):
    net, energy = model(CONFIGS[name])
    assert isinstance(energy, NormalisedEnergy)
    xt = torch.full((1, LENGTH), net.mask)
    t, everywhere = torch.ones(1, dtype=torch.float64), xt == net.mask
    context = net.read(xt, t)
    log_p = net.log_p_of(context.expand(len(TEXTS), -1, -1), everywhere.expand(len(TEXTS), -1), TEXTS).sum(dim=1)
    log_q = log_p - energy(TEXTS[None], xt, t, log_p[None, :, None], context)[0, :, 0]
    torch.testing.assert_close(log_q.exp().sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    u = torch.rand(50, LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = (xt.expand(50, -1), everywhere.expand(50, -1), context.expand(50, -1, -1))
    x, drawn_log_p = run_to_end(energy.draw(*many, u))
    code = (x * SYMBOLS ** torch.arange(LENGTH).flip(0)).sum(dim=1)
    torch.testing.assert_close(drawn_log_p.sum(dim=1), log_q[code], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "candidates"), [*((name, 3) for name in CONFIGS), *((name, EXACT) for name in sorted(NORMALISED))]
)
def test_the_bound_lies_above_the_nats_of_the_texts_that_the_sampler_writes(name, candidates):
    net, energy = model(CONFIGS[name])
    sampler, rows, copies = Sampler(steps=2, candidates=candidates), 2000, 100
    texts = sampler.sample(torch.full((rows, LENGTH), net.mask), net, energy, LogLinear(), torch.arange(rows))
    code = (texts * SYMBOLS ** torch.arange(LENGTH).flip(0)).sum(dim=1)
    share = torch.bincount(code, minlength=len(TEXTS)).double() / rows
    values = sampler_bound(TEXTS.repeat(copies, 1), net, energy, LogLinear(), sampler, seed=0, draws=1).values
    bound = values.view(copies, -1).double() @ share
    error = bound.std().item() / copies**0.5
    entropy = -torch.xlogy(share, share).sum().item()
    assert -4 * error < bound.mean().item() - entropy < 1
    assert error < 0.05
