"""Validation: fixed rows and noise, exported weights, no dropout, no effect on training, and the best weights kept."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from edlm.checkpoints.training_state import newest_snapshot, open_snapshot, save_snapshot
from edlm.data.batches import Rows
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import Model
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear
from edlm.training import loop
from edlm.training.energy_objectives import ConditionalLikelihoodObjective, ContrastiveObjective
from edlm.training.interfaces import NonFiniteLoss
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.objectives import Denoising, NextToken
from edlm.training.settings import Training
from edlm.training.validation import METRIC, STEP, validation_losses
from tests.networks import denoiser, stirred
from tests.toy import LENGTH, VOCABULARY, Toy, rows, training

ROWS = 11  # no multiple of any batch


def held_out(vocabulary: int = VOCABULARY, length: int = LENGTH) -> Rows:
    tokens = torch.randint(vocabulary, (ROWS, length), generator=torch.Generator().manual_seed(99))
    return Rows(tokens, STEP, torch.arange(ROWS), ROWS)


DROPPING = TransformerConfig(width=16, layers=2, heads=2, dropout=0.5)


def objectives() -> dict:
    """Every objective by name, built anew from fixed weights, with dropout in its networks; a vocabulary of 5."""

    def contrastive(config, loss):
        net = denoiser(5, DROPPING)
        return ContrastiveObjective(Model(net, stirred(config.build(net), 3), LogLinear()), 3, loss, 0)

    def conditional(net):
        return stirred(ConditionalEnergyConfig(width=16, layers=1).build(net), 5)

    def residual():
        net = denoiser(5, DROPPING)
        energy = stirred(ResidualEnergyConfig(width=16).build(net, conditional(net)), 3)
        return ContrastiveObjective(Model(net, energy, LogLinear()), 3, "ranking", 0)

    def conditioning():
        net = denoiser(5, DROPPING)
        return ConditionalLikelihoodObjective(Model(net, conditional(net), LogLinear()), 0)

    return {
        "denoising": lambda: Denoising(denoiser(5, DROPPING), LogLinear(), 0),
        "next token": lambda: NextToken(stirred(AutoregressiveModel(DROPPING, 5))),
        "step": lambda: contrastive(StepEnergyConfig(block=4, width=16), "ranking"),
        "bidirectional": lambda: contrastive(BidirectionalEnergyConfig(), "binary"),
        "conditional": conditioning,
        "residual": residual,
    }


def trained(settings: Training, engine: LocalEngine | None = None, checkpoint=None, validation: Rows | None = None):
    """The engine after `fit`, and the metrics of each step without the seconds."""
    engine = engine or LocalEngine(Toy(), settings)
    validation = validation or (held_out() if settings.validate_every is not None else None)
    curve: list[dict[str, float]] = []
    fit(engine, rows, settings, 0, lambda _, m: curve.append(dict(m)), checkpoint or (lambda _: None), validation)
    for metrics in curve:
        metrics.pop("seconds_per_step")
    return engine, curve


def losses(curve: list[dict[str, float]]) -> dict[int, float]:
    """Validation losses by the number of steps taken."""
    return {step + 1: metrics[METRIC] for step, metrics in enumerate(curve) if METRIC in metrics}


@pytest.mark.parametrize("ema", [0.9, None])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_validation_changes_no_number_of_training(precision, ema):
    settings = training(precision=precision, ema=ema)
    without, plain = trained(settings)
    engine, curve = trained(replace(settings, validate_every=1))
    assert [{name: value for name, value in metrics.items() if name != METRIC} for metrics in curve] == plain
    assert all(torch.equal(engine.export()[name], weight) for name, weight in without.export().items())


@pytest.mark.parametrize("ema", [0.9, None])
def test_the_loss_is_that_of_the_exported_weights_without_dropout(ema):
    engine, curve = trained(training(ema=ema, validate_every=3))
    exported = Toy(dropout=0.0)
    exported.trained.load_state_dict(engine.export())
    assert sorted(losses(curve)) == [3, 6]
    assert losses(curve)[6] == pytest.approx(exported(held_out())[0].item(), rel=1e-6)


@pytest.mark.parametrize(("steps", "every", "measured"), [(6, 2, [2, 4, 6]), (5, 2, [2, 4, 5]), (3, 10, [3])])
def test_a_validation_is_due_every_n_steps_and_after_the_last(steps, every, measured):
    _, curve = trained(training(steps=steps, validate_every=every))
    assert sorted(losses(curve)) == measured


@pytest.mark.parametrize("name", list(objectives()))
def test_the_noise_is_fixed_and_the_mean_is_over_rows_however_they_are_batched(name):
    objective = objectives()[name]()
    engine = LocalEngine(objective, training())
    validation = held_out(5, 12)
    _, first = validation_losses(engine, validation, 4)
    for size in (4, 1, ROWS):
        assert validation_losses(engine, validation, size)[1] == pytest.approx(first, rel=1e-5)
    assert validation_losses(engine, validation, 4)[1] == first
    reference, _ = objective.eval()(validation)
    assert first == pytest.approx(reference.item(), rel=1e-5)


class ValidationPeer(LocalEngine):
    """One of `world_size` engines with the same weights; `gather` is theirs, in order."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(Toy(), training())
        self.rank, self.world_size = rank, world_size
        self.sent: list[torch.Tensor] = []

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        self.sent.append(values)
        return values.expand(self.world_size, *values.shape)


@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_ranks_divide_the_rows_and_make_equally_many_calls(world_size):
    output = []
    for rank in range(world_size):
        validation_losses(peer := ValidationPeer(rank, world_size), held_out(), 2)
        output.append(peer.sent[0])
    assert len({len(values) for values in output}) == 1
    _, alone = validation_losses(LocalEngine(Toy(), training()), held_out(), 2)
    calls = range(len(output[0]))
    batches = [(i, rank, ROWS - 2 * (i * world_size + rank)) for rank in range(world_size) for i in calls]
    mean = sum(output[rank][i].item() * min(2, max(0, left)) for i, rank, left in batches) / ROWS
    assert mean == pytest.approx(alone, rel=1e-6)


class Scripted(LocalEngine):
    """Engine whose validation loss after each number of steps is given."""

    def __init__(self, settings: Training, script: list[float]) -> None:
        super().__init__(Toy(), settings)
        self.script = script

    @contextmanager
    def evaluating(self):
        yield lambda _: torch.tensor(self.script[self.step - 1])


def scripted(script: list[float], **changes) -> tuple[LocalEngine, list[dict[str, torch.Tensor]], list[int]]:
    """The engine after a training with these validation losses, its weights after each step, and its checkpoints."""
    settings = training(steps=len(script), ema=None, **{"validate_every": 1, **changes})
    engine, weights, saved = Scripted(settings, script), [], []

    def remember(_: int, __: object) -> None:
        weights.append({name: master.clone() for name, master in zip(engine.names, engine.masters, strict=True)})

    fit(engine, rows, settings, 0, remember, lambda engine: saved.append(engine.step), held_out())
    return engine, weights, saved


def same(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[name], weight) for name, weight in other.items())


@pytest.mark.parametrize(
    ("script", "every", "best"),
    [
        ([3.0, 1.0, 2.0, 2.5], 1, 2),
        ([3.0, 1.0, 1.0, 2.5], 1, 2),  # of equal ones the first
        ([9.0, 3.0, 0.0, 2.0, 1.0], 2, 5),  # the last weights are a candidate even between two validations
        ([9.0, 1.0, 0.0, 2.0, 3.0], 2, 2),
        ([9.0, 9.0, 5.0], 7, 3),
    ],
)
def test_the_weights_with_the_lowest_validation_loss_are_exported_if_asked(script, every, best):
    engine, weights, _ = scripted(script, validate_every=every, keep_best=True)
    assert same(engine.export(), weights[best - 1])
    engine, weights, _ = scripted(script, validate_every=every)
    assert same(engine.export(), weights[-1])


@pytest.mark.parametrize(
    ("script", "patience", "taken"),
    [
        ([3.0, 2.0, 2.5, 2.5, 0.0], 2, 4),
        ([3.0, 2.0, 2.0, 0.0, 0.0], 1, 3),
        ([3.0, 2.0, 2.5, 1.0, 1.5], 2, 5),
        ([3.0, 2.0, 1.0], 1, 3),
    ],
)
def test_training_stops_after_as_many_validations_without_a_lower_loss(script, patience, taken):
    engine, weights, _ = scripted(script, early_stopping_patience=patience)
    assert (engine.step, len(weights)) == (taken, taken)


class InterruptedValidation(Exception):
    pass


@pytest.mark.parametrize("ema", [0.9, None])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_an_interrupted_training_keeps_its_best_weights_and_its_patience(tmp_path, ema, step):
    script = [5.0, 1.0, 2.0, 3.0, 4.0, 0.0]  # stops after 5 steps, of which the second is the best

    def settings(**changes) -> Training:
        return training(ema=ema, validate_every=1, keep_best=True, early_stopping_patience=3, **changes)

    whole, curve = trained(settings(), Scripted(settings(), script))
    assert whole.step == 5

    def stop(engine):
        save_snapshot(str(tmp_path), engine.state(), engine.step)
        raise InterruptedValidation

    every = settings(checkpoint_every=step)
    with pytest.raises(InterruptedValidation):
        trained(every, Scripted(every, script), stop)
    uri, steps = newest_snapshot(str(tmp_path))
    resumed = Scripted(every, script)
    resumed.load(open_snapshot(uri), steps)
    _, rest = trained(every, resumed)
    assert resumed.step == 5
    assert rest == curve[step:]
    assert same(resumed.export(), whole.export())


def test_a_validation_loss_that_is_not_finite_stops_training():
    with pytest.raises(NonFiniteLoss, match="the validation loss at step 1 on rank 0 is not finite"):
        scripted([2.0, float("nan"), 1.0])


def test_a_state_without_validation_is_refused_where_one_is_needed():
    state = trained(training())[0].state()
    engine = LocalEngine(Toy(), training(validate_every=1, keep_best=True))
    with pytest.raises(ValueError, match=r"best\.0\.weight is missing.*another network or training"):
        engine.load(state, 0)


@pytest.mark.parametrize("field", [{"keep_best": True}, {"early_stopping_patience": 3}])
def test_what_goes_by_the_validation_loss_needs_one(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"{name} is (true|3), but there is no validation loss.*set validate_every"):
        training(**field)


def test_validation_rows_are_given_where_and_only_where_they_are_used():
    for settings, validation in ((training(validate_every=2), None), (training(), held_out())):
        with pytest.raises(ValueError, match=r"validation rows are (missing|given)"):
            fit(LocalEngine(Toy(), settings), rows, settings, 0, lambda *_: None, lambda _: None, validation)


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_validation_after_the_last_step_counts_and_is_computed_once(keep_best, monkeypatch):
    computed = []
    monkeypatch.setattr(loop, "validation_losses", lambda *a: computed.append(a[0].step) or validation_losses(*a))
    engine, _, _ = scripted([9.0, 3.0, 9.0, 2.0, 1.0], validate_every=2, keep_best=keep_best)
    assert computed == [2, 4, 5]
    assert engine.validation[0].item() == 1.0
