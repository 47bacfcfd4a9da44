"""What energies are trained with: contrast with negatives, or the likelihood of the tokens that a step unmasks."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.config import ConfigurationError
from edlm.cooperative_work import run_to_end
from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import AbstractEnergy, Model
from edlm.models.denoiser import AbstractDenoiser, Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.rng import Purpose, uniforms
from edlm.schedule import LogLinear, draw_times
from edlm.training.energy_objectives import (
    ConditionalLikelihoodObjective,
    ContrastiveObjective,
    draw_step,
    energy_objective,
    frozen,
    noised_step,
)
from tests.networks import KINDS, autoregressive, denoiser, stirred
from tests.training.objectives import (
    LOSS_MASK,
    SEPARATOR,
    L,
    N,
    V,
    answers,
    documents_alone,
    of_kind,
    rows,
)


@pytest.mark.parametrize("loss", ["ranking", "binary"])
@pytest.mark.parametrize(
    "config", [StepEnergyConfig(block=4), StepEnergyConfig(block=None), BidirectionalEnergyConfig()]
)
def test_an_untrained_energy_gains_nothing_and_loses_log_k(config, loss):
    net = denoiser(V)
    objective = ContrastiveObjective(Model(net, config.build(net, None), LogLinear()), 3, loss, seed=0)
    value, observed = objective(rows())
    torch.testing.assert_close(
        observed["gain_nats"], torch.zeros(N, dtype=observed["gain_nats"].dtype), atol=1e-5, rtol=0
    )
    assert 0 < value.item() <= (math.log(4) if loss == "ranking" else 2 * math.log(2)) + 1e-6


@pytest.mark.parametrize("name", [name for name, config in KINDS.items() if config.trained])
def test_normalised_energies_are_trained_by_their_likelihood_and_others_by_nce_and_every_weight_of_theirs_learns(name):
    objective = of_kind(KINDS[name])
    assert isinstance(
        objective, ConditionalLikelihoodObjective if KINDS[name].network.normalised else ContrastiveObjective
    )
    loss, _ = objective(rows())
    loss.backward()
    learnt = {n: w.grad for n, w in objective.trained.named_parameters() if w.requires_grad}
    assert learnt
    assert all(gradient is not None and bool(gradient.any()) for gradient in learnt.values())


def test_a_normalised_energy_without_its_log_probability_is_refused():
    net = denoiser(V)
    energy = KINDS["coar"].build(net, autoregressive(V))
    with pytest.raises(ValueError, match="CarryOverEnergy has no `log_p` and `draw`"):
        energy_objective(Model(net, energy, LogLinear()), 3, "ranking", seed=0)


def test_the_steps_that_energies_learn_cover_the_grids():
    t, s = draw_step(0, Rows(torch.zeros(4096, 1, dtype=torch.long), 0, torch.arange(4096), 4096), largest_grid=64)
    steps = 1 / (t - s)
    torch.testing.assert_close(steps, steps.round())
    assert steps.min().round() == 1
    assert steps.max().round() == 64
    assert bool(((s >= 0) & (t <= 1 + 1e-12)).all())
    # T is log-uniform: as many grids of 2 to 4 steps as of 16 to 32.
    few, many = ((steps >= 2) & (steps < 4)).sum(), ((steps >= 16) & (steps < 32)).sum()
    assert 0.7 < few / many < 1.4


def test_every_step_of_a_grid_is_equally_likely_whatever_the_grid():
    count = 40_000
    t, s = draw_step(2, Rows(torch.zeros(count, 1, dtype=torch.long), 0, torch.arange(count), count), largest_grid=8)
    steps = (1 / (t - s)).round().long()
    for total in range(1, 9):
        hits = torch.bincount((t[steps == total] * total).round().long(), minlength=total + 1)
        assert hits[0] == 0
        expected = hits.sum() / total
        assert ((hits[1:] - expected) ** 2 / expected).sum() < 30  # at most 7 degrees of freedom, one in 10,000


@pytest.mark.parametrize("name", ["bidirectional", "edlm_nce", "step", "residual"])
def test_candidates_hold_masks_unless_the_energy_scores_whole_sequences(name):
    objective, asked = of_kind(KINDS[name]), []
    objective.trained.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    objective(rows())
    assert (asked[0] == V).any() == (name in ("step", "residual"))


class WatchedEnergy(AbstractEnergy):
    """Any numbers as energies, a function of the new tokens and the time; keeps what it was asked."""

    def __init__(self, whole_sequence: bool, block: int | None, proposal: AbstractEnergy | None = None) -> None:
        super().__init__()
        self.whole_sequence, self.block, self.scale = whole_sequence, block, nn.Parameter(torch.ones(()))
        self.proposal = proposal

    def forward(self, x, xt, t, log_p, context):
        self.asked = (x, xt, t, log_p, context)
        tokens = F.pad(x * torch.arange(1, L + 1), (0, -L % (self.block or L)))
        reported = tokens.unflatten(-1, (-1, self.block or L)).sum(-1)
        return self.scale * torch.sin(reported.float() + t.float()[:, None, None])


WATCHED = {
    "whole drafts": (True, None),
    "a step": (False, None),
    "a step in blocks": (False, 5),
    "a step on a proposal": (False, None),
}


def noise_of(objective, whole_sequence: bool, batch_index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t, s, x_t and U of the rows at `batch_index`, by the definitions."""
    if whole_sequence:
        t = draw_times(objective.seed, 3, batch_index, N)
        s = torch.zeros_like(t)
    else:
        t, s = draw_step(objective.seed, rows(), objective.largest_grid)
    u = [uniforms(objective.seed, 3, batch_index, purpose, (L,)) for purpose in (Purpose.MASK, Purpose.UNMASK)]
    masked = u[0] >= (1 - t)[:, None]  # log-linear
    return t, s, torch.where(masked, V, rows().tokens), masked & (u[1] < ((t - s) / t)[:, None])


@pytest.mark.parametrize("loss", ["ranking", "binary"])
@pytest.mark.parametrize("name", WATCHED)
def test_nce_compares_the_data_with_negatives_from_the_same_noise_by_group_where_two_tokens_are_new(name, loss):
    net, (drafts, block), negatives = denoiser(V), WATCHED[name], 3
    proposal = (
        stirred(ConditionalEnergyConfig(width=16).build(net), seed=5).requires_grad_(False)
        if "proposal" in name
        else None
    )
    energy = WatchedEnergy(drafts, block, proposal)
    objective = ContrastiveObjective(Model(net, energy, LogLinear()), negatives, loss, seed=6, largest_grid=4)
    value, observed = objective(rows())
    x, xt, t, log_p, context = energy.asked
    wanted_t, _, wanted_xt, new = noise_of(objective, drafts, torch.arange(N))
    assert torch.equal(t, wanted_t)
    assert torch.equal(observed["t"], wanted_t)
    assert torch.equal(xt, wanted_xt)
    torch.testing.assert_close(context[new], net.read(xt, t)[new])
    assert not context[~new].any()
    assert torch.equal(new, xt == V) == drafts
    assert torch.equal(x[:, 0], torch.where(new, rows().tokens, xt))
    u = uniforms(6, 3, torch.arange(N), Purpose.NEGATIVE, (negatives, L))
    if proposal is None:
        distribution = torch.zeros(N, L, V).masked_scatter(new[..., None], net.log_p(context, new))
        drawn = (u[..., None] >= distribution.double().exp().cumsum(-1)[:, None]).sum(-1).clamp(max=V - 1)
        assert torch.equal(x[:, 1:], torch.where(new[:, None], drawn, xt[:, None]))
        reported = (
            distribution[:, None].expand(-1, negatives + 1, -1, -1).gather(-1, x.clamp(max=V - 1)[..., None])[..., 0]
        )
        size = block or L
        by_group = [part.sum(-1) for part in torch.where(new[:, None], reported, 0.0).split(size, dim=-1)]
        torch.testing.assert_close(log_p, torch.stack(by_group, dim=-1))
    else:
        for j in range(negatives):
            assert torch.equal(x[:, 1 + j], run_to_end(proposal.draw(xt, new, context, u[:, j]))[0])
        torch.testing.assert_close(log_p, proposal.log_p(x, xt, context)[..., None])
    energies = energy(x, xt, t, log_p, context).detach()
    groups = energies.shape[2]
    losses, gains, weighed = torch.zeros(N), torch.zeros(N), 0
    for row, group in itertools.product(range(N), range(groups)):
        members = slice(group * (block or L), (group + 1) * (block or L))
        if new[row, members].sum() < 2:
            continue
        weighed += 1
        data, others = energies[row, 0, group], energies[row, 1:, group]
        ranking = -torch.log((-data).exp() / ((-data).exp() + (-others).exp().sum()))
        binary = (1 + data.exp()).log() + (1 + (-others).exp()).log().mean()
        losses[row] += (ranking if loss == "ranking" else binary) / groups
        gains[row] += math.log(negatives + 1) - ranking
    assert 0 < weighed < N * groups
    torch.testing.assert_close(value, losses.mean())
    torch.testing.assert_close(observed["gain_nats"], gains)


def test_in_conditioning_rows_have_equal_weight_however_many_tokens_they_unmask():
    net = denoiser(V)
    energy = stirred(ConditionalEnergyConfig(width=16, left=2, right=1).build(net), seed=3)
    objective = ConditionalLikelihoodObjective(Model(net, energy, LogLinear()), seed=6, largest_grid=32)
    value, observed = objective(rows())
    t, _, xt, new = noise_of(objective, False, torch.arange(N))
    context, x0 = net.read(xt, t), rows().tokens
    log_c = energy.log_p(torch.where(new, x0, xt)[:, None], xt, context)[:, 0].detach()
    log_p = net.log_p_of(context, new, x0).sum(dim=1).detach()
    assert len(new.sum(dim=1).unique()) > 3
    assert bool((new.sum(dim=1) == 0).any())
    each = [-nats / count if count else 0.0 for nats, count in zip(log_c.tolist(), new.sum(1).tolist(), strict=True)]
    assert value.item() == pytest.approx(sum(each) / N, rel=1e-5)
    torch.testing.assert_close(observed["gain_nats"], log_c - log_p)
    assert torch.equal(observed["t"], t)


def test_within_documents_an_energy_is_trained_on_the_denoisers_log_p_of_each_document_alone():
    net = denoiser(V)
    energy = ConditionalEnergyConfig(width=16).build(net, None)  # fresh: p_c is p_theta
    loss, _ = ConditionalLikelihoodObjective(
        Model(net, energy, LogLinear()), seed=6, largest_grid=32, separator=SEPARATOR
    )(rows())
    t, s = draw_step(6, rows(), 32)
    xt, new = noised_step(6, rows(), t, s, LogLinear(), V)
    total = 0.0
    for i, part in documents_alone():
        where, x0 = new[i, part][None], rows().tokens[i, part][None]
        log_p = net.log_p_of(net.read(xt[i, part][None], t[i : i + 1]), where, x0).sum().item()
        total -= log_p / max(1, int(new[i].sum()))
    assert loss.item() == pytest.approx(total / N, rel=1e-5)


@pytest.mark.parametrize("config", [StepEnergyConfig(block=4, width=16), ConditionalEnergyConfig(width=16)])
def test_a_denoiser_that_cannot_keep_within_documents_is_no_base_for_energies_that_are_to_be_trained_so(config):
    class Across(Denoiser):
        read_within, features_at = AbstractDenoiser.read_within, AbstractDenoiser.features_at

    net = stirred(Across(TransformerConfig(width=16, layers=2, heads=2), V))
    objective = energy_objective(Model(net, config.build(net, None), LogLinear()), 3, "ranking", 0, separator=SEPARATOR)
    with pytest.raises(ConfigurationError, match="Across attends across documents"):
        objective(rows())


def test_of_pairs_an_energy_never_sees_a_prompt_masked():
    given = answers()
    for t in (0.5, 1.0):
        xt, new = noised_step(0, given, torch.full((N,), t), torch.zeros(N), LogLinear(), V)
        assert bool((xt == V).any())
        assert torch.equal(xt[~LOSS_MASK], given.tokens[~LOSS_MASK])
        assert not bool((new & ~LOSS_MASK).any())


def test_what_is_frozen_has_nothing_to_train_and_no_dropout():
    net = denoiser(V).train()
    assert frozen(net) is net
    assert not net.training
    assert not any(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize("kind", ["contrastive", "on a proposal", "conditioning"])
def test_no_dropout_enters_the_noise_distribution_though_engines_put_the_whole_objective_into_training(kind):
    transformer = TransformerConfig(width=16, layers=2, heads=2, dropout=0.5)
    net = denoiser(V, transformer)
    below = stirred(ConditionalEnergyConfig(width=16).build(net), seed=5)
    if kind == "conditioning":
        objective = ConditionalLikelihoodObjective(
            Model(net, stirred(ConditionalEnergyConfig(width=16).build(net), 3), LogLinear()), seed=0
        )
    else:
        config, on = (
            (StepEnergyConfig(block=4, width=16), None)
            if kind == "contrastive"
            else (ResidualEnergyConfig(width=16), below)
        )
        objective = ContrastiveObjective(
            Model(net, stirred(config.build(net, on), 3), LogLinear()), 3, "ranking", seed=0
        )
    expected, of_wanted = objective.eval()(rows())
    objective.train()
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        loss, observed = objective(rows())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(observed["gain_nats"], of_wanted["gain_nats"])
