"""Validations without a lower loss are counted, and as many as the patience allows end a training."""

import torch

from edlm.training.early_stopping import finished, record_validation
from edlm.training.local_engine import LocalEngine
from tests.toy import Toy, training


def test_validations_since_the_lowest_loss_are_counted_until_the_patience_ends():
    settings = training(steps=100, validate_every=1, early_stopping_patience=2)
    engine, states = LocalEngine(Toy(), settings), []
    for loss in (3.0, 3.5, 2.0, 2.0, 2.5):
        record_validation(engine, loss, settings)
        states.append((*engine.validation.tolist(), finished(engine, settings)))
    assert states == [(3, 0, False), (3, 1, False), (2, 0, False), (2, 1, False), (2, 2, True)]


def test_without_patience_only_the_last_step_ends_a_training():
    settings = training(steps=3, validate_every=1)
    engine = LocalEngine(Toy(), settings)
    for _ in range(9):
        record_validation(engine, 1.0, settings)
    assert not finished(engine, settings)
    engine.step = 3
    assert finished(engine, settings)


def test_the_best_weights_are_those_of_the_lowest_loss():
    settings = training(ema=None, validate_every=1, keep_best=True)
    engine = LocalEngine(Toy(), settings)
    for number, loss in enumerate((2.0, 1.0, 1.0)):
        for master in engine.masters:
            master.fill_(number)
        record_validation(engine, loss, settings)
    assert all(torch.equal(best, torch.ones_like(best)) for best in engine.best or [])
    assert engine.best
