"""The result of a training is what its engine exports, whether or not an earlier attempt to write it was killed."""

import pytest
import torch

from cluster.training import result
from cluster.training.result import read_result, training_facts, write_result
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from tests.toy import Toy, rows, training


@pytest.fixture
def engine() -> LocalEngine:
    settings = training(ema=0.9)
    trained = LocalEngine(Toy(), settings)
    fit(trained, rows, settings, 0, lambda *_: None, lambda _: None)
    return trained


def test_the_result_is_what_the_engine_exports(engine, tmp_path):
    assert training_facts(str(tmp_path)) is None
    write_result(engine, str(tmp_path), {"steps": 6})
    assert training_facts(str(tmp_path)) == {"steps": 6}
    actual, expected = read_result(str(tmp_path)), engine.export()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


def test_a_result_that_was_not_committed_is_none_and_is_written_again(engine, tmp_path, monkeypatch):
    class KilledCommit(BaseException):
        pass

    def killed(*_):
        raise KilledCommit

    monkeypatch.setattr(result, "commit", killed)
    with pytest.raises(KilledCommit):
        write_result(engine, str(tmp_path), {})
    monkeypatch.undo()
    assert training_facts(str(tmp_path)) is None
    write_result(engine, str(tmp_path), {"steps": 6})
    assert read_result(str(tmp_path)).keys() == engine.export().keys()
