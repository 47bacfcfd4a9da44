"""The result of a training is what its engine exports, whether or not an earlier attempt to write it was killed."""

import pytest
import torch

from cluster.training.result import RESULT, read_result, sweep_results, training_facts, write_result
from edlm.checkpoints import snapshot_writer, weight_files
from edlm.checkpoints.networks import OpenDenoiser, open_denoiser, save_denoiser
from edlm.checkpoints.snapshot_manifest import MANIFEST
from edlm.checkpoints.snapshot_retention import snapshot_folder
from edlm.checkpoints.snapshot_writer import write_part
from edlm.checkpoints.state_slices import whole
from edlm.checkpoints.training_state import NoValidSnapshot, save_snapshot
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
    write_result(engine, str(tmp_path), "a", {"steps": 6})
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
    write_result(trained, str(tmp_path / "work"), "a", {})

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


def test_a_result_that_a_larger_attempt_left_half_written_does_not_count_and_goes(engine, tmp_path):
    """Three workers, of which two were killed before they had written; then there is one."""
    left = tmp_path / RESULT / snapshot_folder(6, "killed")
    write_part(str(left), 2, [whole("weights.a", torch.zeros(3))])
    assert training_facts(str(tmp_path)) is None
    write_result(engine, str(tmp_path), "a", {"steps": 6})
    assert not left.exists()
    assert read_result(str(tmp_path)).keys() == engine.export().keys()
    write_part(str(left), 2, [whole("weights.a", torch.zeros(3))])
    sweep_results(str(tmp_path), "b")
    assert [path.name for path in (tmp_path / RESULT).iterdir()] == [snapshot_folder(6, "a")]


def test_a_damaged_result_is_named_and_made_again_from_the_checkpoint(engine, tmp_path, caplog):
    write_result(engine, str(tmp_path), "a", {"steps": 6})
    manifest = tmp_path / RESULT / snapshot_folder(6, "a") / MANIFEST
    manifest.write_text("{")
    with pytest.raises(NoValidSnapshot, match=r"manifest.json is damaged .*delete these folders to begin again"):
        training_facts(str(tmp_path))
    save_snapshot(str(tmp_path), engine.state(), 4)
    assert training_facts(str(tmp_path)) is None
    assert f"checkpoint {manifest.parent} is passed over: manifest.json is damaged" in caplog.text
    write_result(engine, str(tmp_path), "b", {"steps": 6})
    assert training_facts(str(tmp_path)) == {"steps": 6}
    assert not manifest.parent.exists()


def test_a_store_that_refuses_the_result_for_a_while_is_tried_again(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_writer, "FIRST_PAUSE", 0.01)
    left, write = [OSError(28, "No space left on device")] * 3, snapshot_writer.write_part

    def refusing(*given) -> None:
        if left:
            raise left.pop()
        write(*given)

    monkeypatch.setattr(snapshot_writer, "write_part", refusing)
    write_result(engine, str(tmp_path), "a", {"steps": 6}, patience=60)
    assert training_facts(str(tmp_path)) == {"steps": 6}
