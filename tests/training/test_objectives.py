"""What holds for every objective of training, and what the denoiser and the autoregressive model learn."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from edlm.rng import Purpose, uniforms
from edlm.schedule import Cosine, LogLinear, draw_times
from edlm.training.objectives import Denoising, NextToken
from tests.networks import autoregressive, denoiser
from tests.training.objectives import (
    LOSS_MASK,
    OBJECTIVES,
    SEPARATOR,
    L,
    N,
    V,
    answers,
    documents_alone,
    rows,
)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_does_not_depend_on_how_the_batch_is_cut(name):
    objective = OBJECTIVES[name]()
    whole, _ = objective(rows())
    parts = [objective(rows(start, start + 6))[0] for start in range(0, N, 6)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_the_trained_network_and_nothing_else(name):
    objective = OBJECTIVES[name]()
    loss, _ = objective(rows())
    loss.backward()
    trained = {id(parameter) for parameter in objective.trained.parameters()}
    for parameter in objective.parameters():
        if id(parameter) not in trained:
            assert parameter.grad is None
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in objective.trained.parameters()
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_in_bfloat16(name):
    objective = OBJECTIVES[name]().bfloat16()
    loss, observations = objective(rows())
    loss.backward()
    assert loss.isfinite()
    assert all(value.isfinite().all() for value in observations.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_in_which_nothing_is_masked_give_a_finite_loss(name, monkeypatch):
    objective = OBJECTIVES[name]()
    monkeypatch.setattr("edlm.training.objectives.uniforms", lambda *args, **kwargs: _almost_zero(*args, **kwargs))
    loss, _ = objective(rows())
    loss.backward()
    assert loss.isfinite()


def _almost_zero(seed, step, row, purpose, shape=(), device=None):
    from edlm.rng import uniforms

    return uniforms(seed, step, row, purpose, shape, device) * 1e-9


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "next token"])
def test_all_noise_changes_with_the_step_and_the_seed_and_with_nothing_else(name):
    objective = OBJECTIVES[name]()
    first, again, later = objective(rows())[0], objective(rows())[0], objective(rows(step=4))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    objective.seed = 1
    assert not torch.equal(first, objective(rows())[0])


def test_denoising_is_the_weighted_cross_entropy_of_masked_positions_per_token():
    net, schedule = denoiser(V), Cosine()
    value, observed = Denoising(net, schedule, seed=6)(rows())
    t = draw_times(6, 3, torch.arange(N), N)
    x0 = rows().tokens
    masked = uniforms(6, 3, torch.arange(N), Purpose.MASK, (L,)) >= schedule.alpha(t)[:, None]
    logits = net.log_p(net.read(torch.where(masked, V, x0), t), torch.ones_like(masked)).unflatten(0, (N, L))
    nll = F.nll_loss(logits.transpose(1, 2), x0, reduction="none") * masked
    each = schedule.weight(t) * nll.sum(dim=1) / L
    assert value.item() == pytest.approx(each.mean().item(), rel=1e-5)
    torch.testing.assert_close(observed["nelbo_nats_per_token"], each.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(observed["t"], t)


def test_next_token_training_is_the_mean_over_every_token():
    model = autoregressive(V)
    value, observed = NextToken(model)(rows())
    assert value.item() == pytest.approx(-model.log_p(rows().tokens).sum().item() / (N * L), rel=1e-5)
    assert observed == {}


def test_within_documents_the_denoiser_is_trained_on_each_document_alone():
    net = denoiser(V)
    t = draw_times(6, 3, torch.arange(N), N)
    masked = uniforms(6, 3, torch.arange(N), Purpose.MASK, (L,)) >= LogLinear().alpha(t)[:, None]
    x0, total = rows().tokens, 0.0
    for i, part in documents_alone():
        where, tokens = masked[i, part][None], x0[i, part][None]
        features = net.read(tokens.masked_fill(where, V), t[i : i + 1])
        total -= (LogLinear().weight(t[i]) * net.log_p_of(features, where, tokens).sum()).item()
    value, _ = Denoising(net, LogLinear(), seed=6, separator=SEPARATOR)(rows())
    assert value.item() == pytest.approx(total / (N * L), rel=1e-5)
    assert abs(value.item() - Denoising(net, LogLinear(), seed=6)(rows())[0].item()) > 1e-3


def test_within_documents_the_autoregressive_model_is_trained_on_each_document_alone():
    model = autoregressive(V)
    total = sum(-model.log_p(rows().tokens[i, part][None]).sum().item() for i, part in documents_alone())
    value, _ = NextToken(model, SEPARATOR)(rows())
    assert value.item() == pytest.approx(total / (N * L), rel=1e-5)


def test_of_pairs_only_the_answers_are_masked_and_learnt_given_the_prompts():
    net, schedule, given = denoiser(V), LogLinear(), answers()
    t = draw_times(6, 3, torch.arange(N), N)
    masked = (uniforms(6, 3, torch.arange(N), Purpose.MASK, (L,)) >= schedule.alpha(t)[:, None]) & LOSS_MASK
    xt = torch.where(masked, V, given.tokens)
    nll = -net.log_p_of(net.read(xt, t), masked, given.tokens).sum(dim=1)
    each = schedule.weight(t) * nll / LOSS_MASK.sum(dim=1)
    value, observed = Denoising(net, schedule, seed=6)(given)
    assert value.item() == pytest.approx(each.mean().item(), rel=1e-5)
    torch.testing.assert_close(observed["nelbo_nats_per_token"], each.detach(), rtol=1e-5, atol=1e-6)


def test_of_pairs_an_autoregressive_model_learns_the_answers_given_the_prompts():
    model, given = autoregressive(V), answers()
    each = -(model.log_p(given.tokens) * LOSS_MASK).sum(dim=1) / LOSS_MASK.sum(dim=1)
    assert NextToken(model)(given)[0].item() == pytest.approx(each.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_of_pairs_does_not_depend_on_how_the_batch_is_cut(name):
    objective = OBJECTIVES[name]()
    parts = [objective(answers().slice(start, start + 6))[0] for start in range(0, N, 6)]
    torch.testing.assert_close(objective(answers())[0], torch.stack(parts).mean())


def test_a_row_without_an_answer_has_no_loss_and_no_gradient():
    net = denoiser(V)
    nothing = replace(rows(), loss_mask=torch.zeros(N, L, dtype=torch.bool))
    loss, _ = Denoising(net, LogLinear(), seed=6)(nothing)
    loss.backward()
    assert loss.item() == 0.0
    assert all(weight.grad is None or not bool(weight.grad.any()) for weight in net.parameters())
