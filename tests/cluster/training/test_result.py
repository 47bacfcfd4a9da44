"""The result of a training is what its engine exports, whether or not an earlier attempt to write it was killed."""

import pytest
import torch

from cluster.training import result
from cluster.training.result import read_result, training_facts, write_result
from edlm.checkpoints import weight_files
from edlm.checkpoints.networks import OpenDenoiser, open_denoiser, save_denoiser
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Symbols
from edlm.schedule import LogLinear
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.objectives import Denoising
from tests import toy
from tests.networks import TRANSFORMER, denoiser
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


def test_a_trained_denoiser_in_shards_is_the_one_in_a_single_file(tmp_path, monkeypatch):
    """The way of a stage: the engine's result, in the workspace, becomes the model folder that the next stage opens."""
    settings, tokenizer = training(ema=0.9), Symbols(size=toy.VOCABULARY).build([])
    tokenizer.save(tmp_path)
    trained = LocalEngine(Denoising(denoiser(toy.VOCABULARY), LogLinear(), seed=0), settings)
    fit(trained, rows, settings, 0, lambda *_: None, lambda _: None)
    write_result(trained, str(tmp_path / "work"), {})

    def saved(name: str) -> OpenDenoiser:
        weights = read_result(str(tmp_path / "work"))
        save_denoiser(tmp_path / name, weights, TRANSFORMER, LogLinear(), toy.LENGTH, tmp_path / FILE, {})
        return open_denoiser(tmp_path / name)

    whole = saved("whole")
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 4000)
    sharded = saved("sharded")
    assert [path.name for path in whole.folder.glob("*.safetensors")] == [weight_files.WEIGHTS]
    assert len([*sharded.folder.glob("weights-*.safetensors")]) > 5
    for name, weight in trained.export().items():
        assert torch.equal(sharded.network.state_dict()[name], weight)
        assert torch.equal(whole.network.state_dict()[name], weight)


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
