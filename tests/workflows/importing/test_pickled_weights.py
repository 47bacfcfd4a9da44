"""Weights are read from pickles by name, averaged where there are averages, and nothing in a pickle is executed."""

import pickle
import sys
import types
from collections import defaultdict

import pytest
import torch

from tests.published.checkpoints import published
from tests.workflows.importing.checkpoints import ROTARY, Executes, lightning
from workflows.importing.pickled_weights import Refused, load, weights_of


def settings_of_another_package(monkeypatch) -> object:
    """An object of a package that is not there when it is read, as the settings of the papers' checkpoints are."""
    module = types.ModuleType("omegaconf.dictconfig")
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    cls = type("DictConfig", (), {"__module__": "omegaconf.dictconfig", "__qualname__": "DictConfig"})
    monkeypatch.setattr(module, "DictConfig", cls, raising=False)
    settings = cls()
    settings.__dict__["content"] = {"width": 40, "kind": dict, "cache": defaultdict(dict, {"filled": 1})}
    return settings


def test_averages_are_taken_by_the_order_of_the_parameters_and_settings_are_not_read(tmp_path, monkeypatch):
    content = lightning(settings_of_another_package(monkeypatch))
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    state, loaded = content["state_dict"], load(tmp_path / "last.ckpt")
    assert vars(loaded["hyper_parameters"]["config"]) == {}
    converted, facts = weights_of(loaded, raw=False)
    assert facts == {"weights": "ema", "tensors": len(state), "ema_decay": 0.9999}
    assert converted.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(converted[name], tensor if name == ROTARY else 2 * tensor), name
    raw, facts = weights_of(loaded, raw=True)
    assert facts["weights"] == "raw"
    assert all(torch.equal(tensor, state[name]) for name, tensor in raw.items())


def test_averages_of_one_part_go_to_that_part_and_those_of_none_are_refused():
    content = lightning()
    state = content["state_dict"]
    state |= {f"ebm.{name}": tensor for name, tensor in published("energy", 1).items()}
    converted, _ = weights_of(content, raw=False)
    name = "vocab_embed.embedding"
    assert torch.equal(converted[f"backbone.{name}"], 2 * state[f"backbone.{name}"])
    assert torch.equal(converted[f"ebm.{name}"], state[f"ebm.{name}"])
    state |= {name.replace("ebm", "teacher"): state[name] for name in state if name.startswith("ebm.")}
    content["ema"]["shadow_params"] = [state[n] for n in state if n.startswith("ebm.") and not n.endswith("inv_freq")]
    with pytest.raises(Refused, match=r"averages \(EMA\) fit 2 parts .*; give --raw"):
        weights_of(content, raw=False)
    content["ema"]["shadow_params"].pop()
    with pytest.raises(Refused, match=r"averages \(EMA\) fit 0 parts .*; give --raw"):
        weights_of(content, raw=False)


@pytest.mark.parametrize("nest", [lambda state: state, lambda state: {"model": state, "optimizer": {}, "step": 3}])
def test_weights_alone_and_those_under_model_are_taken_each_in_its_own_memory(tmp_path, nest):
    tensors = published("autoregressive", 1)
    torch.save(nest({**tensors, "tied": tensors["vocab_embed.embedding"]}), tmp_path / "pytorch_model.bin")
    weights, facts = weights_of(load(tmp_path / "pytorch_model.bin"), raw=False)
    assert facts == {"weights": "raw", "tensors": len(tensors) + 1}
    assert torch.equal(weights["tied"], tensors["vocab_embed.embedding"])
    assert weights["tied"].data_ptr() != weights["vocab_embed.embedding"].data_ptr()


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path):
    canary = tmp_path / "executed"
    torch.save({**lightning(), "hyper_parameters": Executes(canary)}, tmp_path / "last.ckpt")
    with pytest.raises(Refused, match=r"it holds posix\.mkdir, and reading these would execute code; ask its author"):
        load(tmp_path / "last.ckpt")
    old = {"x": Executes(canary)}
    torch.save(old, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Executes(canary), protocol=2))
    for name in ("old.pt", "plain.bin"):
        with pytest.raises(Refused, match=r"torch\.load\(weights_only=True\) reads \(.*posix.*\); ask") as refusal:
            load(tmp_path / name)
        assert "Re-running" not in str(refusal.value)  # torch's advice to execute it
    assert not canary.exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "empty.ckpt").write_text("")
    torch.save({"weight": torch.ones(100_000)}, tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:200_000])
    for name in ("text.ckpt", "empty.ckpt", "half.pt"):
        with pytest.raises(Refused, match=r"is no checkpoint that torch\.load"):
            load(tmp_path / name)


def test_content_that_is_not_tensors_by_name_is_refused():
    with pytest.raises(Refused, match="it holds a list, not tensors by name"):
        weights_of([torch.ones(1)], raw=False)
    with pytest.raises(Refused, match="beside tensors it holds step; weights are looked for under state_dict and mod"):
        weights_of({"weight": torch.ones(1), "step": 3}, raw=False)
    with pytest.raises(Refused, match="beside tensors it holds nothing"):
        weights_of({}, raw=False)
