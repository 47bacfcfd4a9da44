import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.engine import LocalEngine
from edlm.snapshot import newest_snapshot, open_snapshot, save_snapshot
from edlm.training import NonFiniteLoss, Training, fit, learning_rate, share
from tests.toy import BATCH, Fault, InfiniteGradient, Toy, rows, training


def trained(settings: Training, objective: Toy | None = None, checkpoint=None, engine=None):
    """The engine after `fit`, and the metrics of each step."""
    engine = engine or LocalEngine(objective or Toy(), settings)
    curve: list[dict[str, float]] = []
    fit(engine, rows, settings, 0, lambda _, metrics: curve.append(dict(metrics)), checkpoint or (lambda _: None))
    for metrics in curve:
        metrics.pop("seconds_per_step")
    return engine, curve


class Interrupted(Exception):
    pass


@given(st.integers(1, 5), st.sampled_from(["float32", "bfloat16"]))
@examples(max_examples=10, deadline=None)
def test_a_training_that_is_interrupted_and_resumed_is_the_same_training(step, precision):
    import tempfile
    from pathlib import Path

    settings = training(precision=precision, checkpoint_every=step)
    whole, curve = trained(settings)
    with tempfile.TemporaryDirectory() as folder:

        def stop(engine):
            save_snapshot(folder, engine.state(), engine.step)
            raise Interrupted

        with pytest.raises(Interrupted):
            trained(settings, checkpoint=stop)
        found = newest_snapshot(folder)
        assert found is not None
        assert found[1] == step
        resumed = LocalEngine(Toy(), settings)
        resumed.load(open_snapshot(found[0]), found[1])
        _, rest = trained(settings, engine=resumed)
        assert Path(folder).is_dir()
    assert rest == curve[step:]
    assert all(torch.equal(resumed.export()[name], weight) for name, weight in whole.export().items())


@pytest.mark.parametrize("accumulation", [1, 4, 8])
def test_accumulation_changes_no_loss(accumulation):
    _, reference = trained(training(accumulation=2), Toy(dropout=0.0))
    _, curve = trained(training(accumulation=accumulation), Toy(dropout=0.0))
    for mine, theirs in zip(curve, reference, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_the_average_is_the_closed_recursion_of_the_weights_after_each_step():
    settings = training(ema=0.9, checkpoint_every=1)
    initial = copy.deepcopy(LocalEngine(Toy(), settings).masters)
    seen: list[list[torch.Tensor]] = []
    engine, _ = trained(settings, checkpoint=lambda e: seen.append([m.clone() for m in e.masters]))
    seen.append(engine.masters)
    for i, name in enumerate(engine.names):
        expected = initial[i] * 0.9**6 + sum(0.1 * 0.9 ** (5 - n) * weights[i] for n, weights in enumerate(seen))
        torch.testing.assert_close(engine.export()[name], expected)
    without, _ = trained(training(ema=None))
    assert all(torch.equal(without.export()[n], m) for n, m in zip(without.names, without.masters, strict=True))


def test_what_is_frozen_does_not_move_and_is_not_exported():
    objective = Toy()
    before = copy.deepcopy(objective.frozen.state_dict())
    engine, _ = trained(training(), objective)
    assert all(torch.equal(objective.frozen.state_dict()[name], tensor) for name, tensor in before.items())
    assert set(engine.export()) == {name for name, _ in objective.trained.named_parameters()}


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_reported():
    objective = Toy(dropout=0.0)
    engine = LocalEngine(objective, training(clip=1e-3, accumulation=1))
    engine.backward(rows(0, 0, BATCH))
    assert engine.update(1e-2) > 0.1
    clipped = torch.stack([master.grad.norm() for master in engine.masters]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("fault", "what"), [(Fault(3, 5), "the loss"), (InfiniteGradient(3, 5), "the gradient's norm")]
)
def test_the_first_step_that_is_not_finite_stops_training_with_step_and_rank(fault, what):
    with pytest.raises(NonFiniteLoss, match=r"step 3 on rank 0 is not finite") as caught:
        trained(training(), Toy(fault=fault))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.step, again.rank, again.what) == (3, 0, what)


def test_observations_are_means_over_the_batch_and_by_quarter_of_t():
    _, (first, *_) = trained(training(steps=1), Toy(dropout=0.0))
    quarters = [first[f"gain_nats/t_{q / 4:.2f}_{(q + 1) / 4:.2f}"] for q in range(4)]
    assert first["gain_nats"] == pytest.approx(sum(quarters) / 4)
    assert first["gain_nats"] == pytest.approx(first["loss_nats_per_token"], rel=1e-5)


@given(st.integers(1, 200), st.integers(0, 50), st.sampled_from(["constant", "cosine"]))
@examples(max_examples=60, deadline=None)
def test_the_learning_rate_warms_up_then_stays_or_falls_to_nothing(steps, warmup, decay):
    settings = training(steps=steps, warmup_steps=warmup, decay=decay, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    rising = rates[: min(warmup, steps)]
    assert rising == sorted(rising)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)
    if after:
        assert after[0] == pytest.approx(1.0)
        assert decay == "cosine" or after[-1] == 1.0
    if warmup < steps and decay == "cosine":
        assert learning_rate(settings, steps) == pytest.approx(0, abs=1e-12)


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    assert share(training(), 2) == 2
    with pytest.raises(ConfigurationError, match="multiple of 6"):
        share(training(), 3)


def test_a_checkpoint_of_another_network_is_refused_by_the_names_of_its_tensors():
    engine, _ = trained(training())
    state = engine.state()
    changed = {name: tensor for name, tensor in state.items() if name != "weights.1.bias"}
    changed["weights.9.bias"], changed["ema.1.weight"] = torch.zeros(1), torch.zeros(2, 2)
    with pytest.raises(
        ValueError, match=r"weights.1.bias is missing; weights.9.bias is foreign; ema.1.weight has shape"
    ):
        LocalEngine(Toy(), training()).load(changed, 6)
    with pytest.raises(ValueError, match=r"ema\.0\.weight is foreign"):
        LocalEngine(Toy(), training(ema=None)).load(state, 6)


def test_a_cosine_without_warm_up_halves_in_the_middle():
    assert learning_rate(training(steps=10, warmup_steps=0, learning_rate=1.0), 5) == pytest.approx(0.5)
    assert math.isfinite(learning_rate(training(steps=1, warmup_steps=1), 0))
