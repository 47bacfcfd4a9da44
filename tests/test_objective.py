import math

import pytest
import torch

from edlm.energy import Bidirectional, Conditional, Step
from edlm.objective import Conditioning, Contrastive, Denoising, NextToken, draw_step
from edlm.schedule import Cosine, LogLinear
from edlm.tokens import Rows
from tests.networks import autoregressive, denoiser, stirred

V, L, N = 5, 12, 24


def rows(start: int = 0, stop: int = N, step: int = 3) -> Rows:
    tokens = torch.randint(V, (N, L), generator=torch.Generator().manual_seed(7))
    return Rows(tokens=tokens[start:stop], step=step, places=torch.arange(start, stop), of=N)


def contrastive(config, loss="ranking", negatives=3):
    net = denoiser(V)
    energy = stirred(config.build(net, None), seed=3)
    return Contrastive(net, energy, LogLinear(), negatives, loss, seed=0)


def every_objective():
    net = denoiser(V)
    return {
        "denoising": Denoising(denoiser(V), Cosine(), seed=0),
        "next token": NextToken(autoregressive(V)),
        "step": contrastive(Step(block=4, width=16)),
        "step whole, binary": contrastive(Step(block=None, width=16), "binary"),
        "bidirectional": contrastive(Bidirectional(), "binary"),
        "conditional": Conditioning(net, stirred(Conditional(width=16).build(net, None), 3), LogLinear(), 0),
    }


NAMES = list(every_objective())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_does_not_depend_on_how_the_batch_is_cut(name):
    objective = every_objective()[name]
    whole, _ = objective(rows())
    parts = [objective(rows(start, start + 6))[0] for start in range(0, N, 6)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_trained_network_and_nothing_else(name):
    objective = every_objective()[name]
    loss, _ = objective(rows())
    loss.backward()
    trained = {id(parameter) for parameter in objective.trained.parameters()}
    for parameter in objective.parameters():
        if id(parameter) not in trained:
            assert parameter.grad is None
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in objective.trained.parameters()
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_trains_in_bfloat16(name):
    objective = every_objective()[name].bfloat16()
    loss, observations = objective(rows())
    loss.backward()
    assert loss.isfinite()
    assert all(value.isfinite().all() for value in observations.values())


@pytest.mark.parametrize("name", NAMES)
def test_rows_in_which_nothing_is_masked_give_a_finite_loss(name, monkeypatch):
    objective = every_objective()[name]
    monkeypatch.setattr("edlm.objective.uniforms", lambda *args, **kwargs: _almost_zero(*args, **kwargs))
    loss, _ = objective(rows())
    loss.backward()
    assert loss.isfinite()


def _almost_zero(seed, step, row, purpose, shape=(), device=None):
    from edlm.streams import uniforms

    return uniforms(seed, step, row, purpose, shape, device) * 1e-9


@pytest.mark.parametrize("loss", ["ranking", "binary"])
@pytest.mark.parametrize("config", [Step(block=4), Step(block=None), Bidirectional()])
def test_an_untrained_energy_gains_nothing_and_loses_log_k(config, loss):
    net = denoiser(V)
    objective = Contrastive(net, config.build(net, None), LogLinear(), 3, loss, seed=0)
    value, observed = objective(rows())
    torch.testing.assert_close(
        observed["gain_nats"], torch.zeros(N, dtype=observed["gain_nats"].dtype), atol=1e-5, rtol=0
    )
    assert 0 < value.item() <= (math.log(4) if loss == "ranking" else 2 * math.log(2)) + 1e-6


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


def test_negatives_and_noise_change_with_the_step_and_the_seed():
    objective = contrastive(Step(block=4, width=16))
    first, again, later = objective(rows())[0], objective(rows())[0], objective(rows(step=4))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
