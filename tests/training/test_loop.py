import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edlm.checkpoints.training_state import newest_snapshot, open_snapshot, save_snapshot
from edlm.config import ConfigurationError
from edlm.data.batches import Rows
from edlm.training.interfaces import NonFiniteLoss
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.settings import Training, share
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
        actual = newest_snapshot(folder)
        assert actual is not None
        assert actual[1] == step
        resumed = LocalEngine(Toy(), settings)
        resumed.load(open_snapshot(actual[0]), actual[1])
        _, rest = trained(settings, engine=resumed)
        assert Path(folder).is_dir()
    assert rest == curve[step:]
    assert all(torch.equal(resumed.export()[name], weight) for name, weight in whole.export().items())


def test_a_training_that_is_asked_to_stop_saves_after_the_step_once_and_resumes_as_the_same_training(tmp_path):
    settings = training(checkpoint_every=3)
    whole, curve = trained(settings)
    engine, steps = LocalEngine(Toy(), settings), []

    def save(engine) -> None:
        steps.append(engine.step)
        save_snapshot(str(tmp_path), engine.state(), engine.step)

    def asked(after: int):
        return lambda: engine.step >= after

    assert not fit(engine, rows, settings, 0, lambda *_: None, save, stop=asked(2))
    assert not fit(engine, rows, settings, 0, lambda *_: None, save, stop=asked(3))
    assert steps == [2, 3], "step 3 is due anyway, and saved once"
    newest = newest_snapshot(str(tmp_path))
    assert newest is not None
    resumed = LocalEngine(Toy(), settings)
    resumed.load(open_snapshot(newest[0]), newest[1])
    _, rest = trained(settings, engine=resumed)
    assert rest == curve[3:]
    assert all(torch.equal(resumed.export()[name], weight) for name, weight in whole.export().items())
    assert fit(engine, rows, settings, 0, lambda *_: None, lambda _: None, stop=asked(6)), (
        "the last step ends it anyway"
    )


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
    seen: list[torch.Tensor] = []
    engine.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.stack([master.grad.norm() for master in engine.masters]).norm())
    )
    engine.backward(rows(0, 0, BATCH))
    assert engine.update(1e-2) > 0.1
    assert seen[0].item() == pytest.approx(1e-3, rel=1e-3)


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


class Peer(LocalEngine):
    """One of two workers, the other of which had the same numbers and one more."""

    world_size = 2

    def __init__(self, rank: int, settings: Training) -> None:
        super().__init__(Toy(dropout=0.0), settings)
        self.rank = rank

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        if values.dtype == torch.float32:  # whether to stop
            return torch.stack([values, values])
        losses_and_norms = values.shape[-1] == 2
        return torch.stack([values, values + (torch.tensor([1.0, 0.0]) if losses_and_norms else 1.0)])


@pytest.mark.parametrize("rank", [0, 1])
def test_workers_have_disjoint_rows_in_every_micro_step_and_the_first_rank_logs(rank):
    settings = training(steps=5, checkpoint_every=2, ema=None)
    asked, logged, saved, engine = [], [], [], Peer(rank, settings)

    def asking(step: int, start: int, stop: int):
        asked.append((step, start, stop))
        return rows(step, start, stop)

    fit(engine, asking, settings, 0, lambda step, m: logged.append((step, dict(m))), lambda e: saved.append(e.step))
    slices = [(start, start + 2) for start in ((0, 4) if rank == 0 else (2, 6))]
    assert asked == [(step, *rows_of) for step in range(5) for rows_of in slices]
    assert saved == [2, 4]
    assert [step for step, _ in logged] == ([0, 1, 2, 3, 4] if rank == 0 else [])
    if rank == 0:
        by_row = [Toy(dropout=0.0)(rows(0, *rows_of))[1]["gain_nats"] for rows_of in slices]
        mine = torch.cat(by_row).mean().item()
        assert logged[0][1]["loss_nats_per_token"] == pytest.approx(mine + 0.5, rel=1e-5)
        assert logged[0][1]["gain_nats"] == pytest.approx(mine + 0.5, rel=1e-5)


class Dropped(Peer):
    """One of `world_size` workers; records a dropout of ones per micro-step, by (step, first batch index)."""

    def __init__(self, rank: int, world_size: int, settings: Training) -> None:
        super().__init__(rank, settings)
        self.world_size, self.left = world_size, {}

    def backward(self, batch: Rows):
        self.left[batch.step, int(batch.batch_index[0])] = torch.nn.functional.dropout(torch.ones(64))
        return super().backward(batch)


def test_dropout_depends_on_the_batch_index_and_not_on_the_worker():
    parted: dict[tuple[int, int], torch.Tensor] = {}
    for rank in (0, 1):
        settings = training(steps=2, accumulation=2)
        fit(worker := Dropped(rank, 2, settings), rows, settings, 0, lambda *_: None, lambda _: None)
        parted |= worker.left
    settings = training(steps=2, accumulation=4)
    fit(alone := Dropped(0, 1, settings), rows, settings, 0, lambda *_: None, lambda _: None)
    assert sorted(parted) == sorted(alone.left) == [(step, index) for step in (0, 1) for index in (0, 2, 4, 6)]
    assert all(torch.equal(parted[at], alone.left[at]) for at in parted)
    assert len({tuple(left.tolist()) for left in parted.values()}) == len(parted)


@pytest.mark.parametrize(
    ("decay", "steps", "expected"),
    [
        ("cosine", 4, []),
        ("cosine", 5, [4]),
        ("wsd", 5, [3, 4]),
        ("wsd", 10, [4, 7, 8]),
        ("constant", 3, [3]),
        ("constant", 4, [4]),
        ("constant", 5, [4, 5]),
    ],
)
def test_the_last_step_makes_a_checkpoint_only_where_a_longer_training_can_continue_from_it(decay, steps, expected):
    settings, saved = training(steps=steps, checkpoint_every=4, decay=decay, decay_share=0.3), []
    trained(settings, checkpoint=lambda engine: saved.append(engine.step))
    assert saved == expected


def test_an_observation_at_time_one_is_of_the_last_quarter_and_empty_quarters_have_no_number():
    class Late(Toy):
        def forward(self, rows):
            loss, observed = super().forward(rows)
            t = torch.linspace(0.5, 1.0, len(rows.tokens))
            return loss, {"t": t, "index": rows.batch_index.float(), "gain_nats": observed["gain_nats"]}

    _, (first,) = trained(training(steps=1, accumulation=1), Late(dropout=0.0))
    t = torch.linspace(0.5, 1.0, BATCH)
    assert {name for name in first if name.startswith("index")} == {"index", "index/t_0.50_0.75", "index/t_0.75_1.00"}
    index = torch.arange(BATCH).float()
    assert first["index"] == pytest.approx(index.mean().item())
    assert first["index/t_0.50_0.75"] == pytest.approx(index[t < 0.75].mean().item())
    assert first["index/t_0.75_1.00"] == pytest.approx(index[t >= 0.75].mean().item())


def test_without_observations_or_times_there_are_no_quarters():
    class Telling(Toy):
        def __init__(self, observed: dict[str, torch.Tensor]) -> None:
            super().__init__()
            self.observed = observed

        def forward(self, rows):
            return super().forward(rows)[0], self.observed

    usual = {"loss_nats_per_token", "learning_rate", "gradient_norm"}
    assert set(trained(training(steps=1), Telling({}))[1][0]) == usual
    (first,) = trained(training(steps=1), Telling({"length": torch.tensor([1.0, 3.0])}))[1]
    assert set(first) == usual | {"length"}
    assert first["length"] == 2


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    assert share(training(), 2) == 2
    assert share(training(batch=24, accumulation=3), 4) == 2
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


@pytest.mark.parametrize("fault", [Fault(3, 5), InfiniteGradient(3, 5)])
@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(1, 4), (50, 4), (4, 50), (50, 50)])
def test_a_step_that_is_not_finite_is_named_however_late_and_no_checkpoint_follows_it(
    fault, log_every, checkpoint_every
):
    settings, saved = training(log_every=log_every, checkpoint_every=checkpoint_every), []
    with pytest.raises(NonFiniteLoss, match="step 3 on rank 0"):
        trained(settings, Toy(fault=fault), checkpoint=lambda engine: saved.append(engine.step))
    assert saved == []


@pytest.mark.parametrize("log_every", [1, 4, 50])
def test_the_steps_before_one_that_is_not_finite_are_logged(log_every):
    settings, logged = training(log_every=log_every), []
    with pytest.raises(NonFiniteLoss, match="step 3 on rank 0"):
        fit(
            LocalEngine(Toy(fault=Fault(3, 5)), settings),
            rows,
            settings,
            0,
            lambda step, _: logged.append(step),
            lambda _: None,
        )
    assert logged == [0, 1, 2]


@pytest.mark.parametrize("log_every", [1, 2, 50])
def test_every_step_is_logged_in_order_with_the_same_numbers_whenever_they_are_gathered(log_every):
    _, expected = trained(training(log_every=1))
    _, curve = trained(training(log_every=log_every, checkpoint_every=5))
    assert curve == expected
