"""The engine of one process takes the steps of torch's own AdamW, and hands on what it holds."""

import copy

import pytest
import torch

from edlm.training.learning_rate import learning_rate
from edlm.training.local_engine import LocalEngine, average
from edlm.training.loop import fit
from tests.toy import BATCH, Toy, rows, training


def test_a_training_is_that_of_torch_on_the_gradients_of_the_micro_steps_clipped_together():
    settings = training(steps=5, accumulation=2, betas=(0.8, 0.95), epsilon=1e-5, weight_decay=0.1, clip=0.2)
    engine, curve = LocalEngine(Toy(dropout=0.0), settings), []
    fit(engine, rows, settings, 0, lambda _, metrics: curve.append(metrics), lambda _: None)
    plain = Toy(dropout=0.0)
    weights = list(plain.trained.parameters())
    means = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        loss, _ = plain(rows(step, 0, BATCH))  # the mean over all rows: micro-steps are of one size
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 0.2)
        (group,) = optimizer.param_groups
        group["lr"] = learning_rate(settings, step)
        optimizer.step()
        means = [0.9 * mean + 0.1 * weight.detach() for mean, weight in zip(means, weights, strict=True)]
        assert curve[step]["loss_nats_per_token"] == pytest.approx(loss.item(), rel=1e-5)
        assert curve[step]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert curve[step]["learning_rate"] == group["lr"]
    held = [engine.state()[f"weights.{name}"] for name in engine.names]
    for actual, exported, weight, mean in zip(held, engine.export().values(), weights, means, strict=True):
        torch.testing.assert_close(actual, weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exported, mean, rtol=1e-4, atol=1e-5)
    assert engine.step == 5


def test_a_weight_without_a_gradient_decays_all_the_same():
    objective = Toy(dropout=0.0)
    objective.trained.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    engine = LocalEngine(objective, training(weight_decay=0.5, ema=None))
    engine.backward(rows(0, 0, BATCH))
    engine.update(1e-2)
    torch.testing.assert_close(engine.export()["idle"], torch.full((3,), 1 - 1e-2 * 0.5))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_shows_the_float32_weights_in_its_own_precision_after_a_step_and_after_a_load(precision):
    engine = LocalEngine(Toy(dropout=0.0), training(precision=precision))
    engine.backward(rows(0, 0, BATCH))
    engine.update(1e-2)
    other = LocalEngine(Toy(dropout=0.0), training(precision=precision))
    other.load({name: tensor.clone() for name, tensor in engine.state().items()}, 1)
    for trained in (engine, other):
        for master, shown in zip(trained.masters, trained.objective.trained.parameters(), strict=True):
            assert master.dtype == torch.float32
            assert shown.dtype == getattr(torch, precision)
            assert torch.equal(shown, master.to(shown.dtype))
    assert other.step == 1
    assert all(torch.equal(engine.state()[name], tensor) for name, tensor in other.state().items())


def test_what_is_exported_does_not_change_with_later_steps():
    for ema in (0.9, None):
        engine = LocalEngine(Toy(dropout=0.0), training(ema=ema))
        kept = engine.export()
        before = copy.deepcopy(kept)
        engine.backward(rows(0, 0, BATCH))
        engine.update(1e-2)
        assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())
        assert not torch.equal(engine.export()["1.weight"], before["1.weight"])


def test_an_average_keeps_its_decay_of_itself():
    means = [torch.tensor([4.0])]
    average(means, [torch.tensor([8.0])], 0.75)
    assert means[0].tolist() == [5.0]


def test_an_engine_without_peers_gathers_its_own_values_alone():
    engine = LocalEngine(Toy(), training())
    assert engine.gather(torch.tensor([1.0, 2.0])).tolist() == [[1.0, 2.0]]
    assert (engine.rank, engine.world_size, engine.step) == (0, 1, 0)
    assert engine.objective.training
