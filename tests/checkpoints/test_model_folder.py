"""A model folder opens exactly as it was saved, or says which file or tensor is wrong."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from edlm.checkpoints import model_folder as checkpoint
from edlm.checkpoints.model_folder import (
    CARD,
    CHECKSUMS,
    TOKENIZER,
    ModelCard,
    digest,
    load_into,
    load_weights,
    open_folder,
)
from edlm.checkpoints.model_folder import save_model as save
from edlm.checkpoints.weight_files import WEIGHTS
from edlm.local_cache import LocalCache
from edlm.local_copies import local_copy
from edlm.storage import publish


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(28, 8), nn.Linear(8, 27))


def card(tokenizer: Path, **changes) -> ModelCard:
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    facts = {"kind": "denoiser", "network": {"width": 8}, "vocabulary": 27, "length": 16, "tokenizer_digest": digest}
    return ModelCard(**{**facts, "schedule": {"kind": "loglinear"}, "trained": {"steps": 3}, **changes})


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    save(tmp_path / "model", card(tokenizer), network().state_dict(), tokenizer)
    return tmp_path / "model"


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
shapes = st.lists(st.integers(0, 4), max_size=3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(spec=st.dictionaries(st.text("ab.0", min_size=1, max_size=6), st.tuples(shapes, dtypes), max_size=5))
def test_weights_of_any_shape_and_dtype_come_back_bit_for_bit(tmp_path, tokenizer, spec):
    weights = {name: torch.randint(-9, 9, tuple(shape)).to(dtype) for name, (shape, dtype) in spec.items()}
    save(tmp_path / "any", card(tokenizer), weights, tokenizer)
    back = load_weights(tmp_path / "any")
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_a_network_is_the_same_after_saving_and_loading(folder, tokenizer):
    other = network(seed=1)
    load_into(other, load_weights(folder))
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), network().state_dict().values(), strict=True)
    )
    assert open_folder(folder) == card(tokenizer)


def test_tied_and_transposed_weights_are_saved_as_what_they_are(tmp_path, tokenizer):
    tied = nn.Module()
    tied.inward = nn.Linear(4, 4, bias=False)
    tied.outward = nn.Linear(4, 4, bias=False)
    tied.outward.weight = tied.inward.weight
    weights = {**tied.state_dict(), "turned": tied.inward.weight.detach().T}
    save(tmp_path / "tied", card(tokenizer), weights, tokenizer)
    back = load_weights(tmp_path / "tied")
    assert torch.equal(back["inward.weight"], back["outward.weight"])
    assert torch.equal(back["turned"], back["inward.weight"].T)


def test_the_digest_is_that_of_card_weights_and_tokenizer_and_of_nothing_else(tmp_path, folder, tokenizer):
    weights = network().state_dict()
    backwards = dict(reversed(weights.items()))
    assert save(tmp_path / "again", card(tokenizer), backwards, tokenizer) == digest(folder)
    for path in (CARD, WEIGHTS, TOKENIZER, CHECKSUMS):
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes()
    assert save(tmp_path / "other", card(tokenizer), network(seed=1).state_dict(), tokenizer) != digest(folder)
    assert save(tmp_path / "card", card(tokenizer, length=17), weights, tokenizer) != digest(folder)


def test_a_model_can_be_published_and_opened_where_it_is_fetched(tmp_path, folder):
    publish(folder, "memory://test_checkpoint/model")
    copy = local_copy("memory://test_checkpoint/model", LocalCache(tmp_path / "cache"))
    assert digest(copy) == digest(folder)
    assert load_weights(copy).keys() == network().state_dict().keys()


def test_killed_before_its_end_a_save_leaves_no_model(folder, tokenizer, monkeypatch):
    class KilledSave(BaseException):
        pass

    def killed(*_):
        raise KilledSave

    for last in ("write_weights", "write_text", "dump", "inventory", "plain"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, last, killed)
            with pytest.raises(KilledSave):
                save(folder, card(tokenizer), network(seed=1).state_dict(), tokenizer)
        with pytest.raises(ValueError, match=f"no {CHECKSUMS}"):
            load_weights(folder)
    save(folder, card(tokenizer), network(seed=1).state_dict(), tokenizer)
    load_into(network(), load_weights(folder))


DAMAGE = {
    "missing weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}' is missing"),
    "missing tokenizer": (lambda f: (f / TOKENIZER).unlink(), f"{TOKENIZER}' is missing"),
    "missing checksums": (lambda f: (f / CHECKSUMS).unlink(), "no complete model folder"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "no safetensors file, or is truncated"),
    "truncated weights": (lambda f: _cut(f / WEIGHTS, -1), f"{WEIGHTS}' has .* bytes, expected"),
    "flipped bit": (lambda f: _flip(f / WEIGHTS), f"{WEIGHTS}' has SHA-256"),
    "edited card": (lambda f: (f / CARD).write_text((f / CARD).read_text().replace("16", "17")), f"{CARD}' has SHA"),
    "foreign file": (lambda f: (f / "modeling.py").write_text("print()"), r"unexpected file 'modeling\.py'"),
    "torn checksums": (lambda f: _cut(f / CHECKSUMS, 40), "is damaged"),
    "list of checksums": (lambda f: (f / CHECKSUMS).write_text("[]"), "no JSON object"),
    "path in checksums": (lambda f: _name(f / CHECKSUMS, "../../etc/passwd"), "not a plain path"),
}


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _name(path: Path, name: str) -> None:
    tree = json.loads(path.read_text())
    tree["files"][0]["path"] = name
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_with_the_name_of_the_file(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_weights(folder)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def _safetensors(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(start: int, stop: int, shape: int) -> dict:
    return {"dtype": "F32", "shape": [shape], "data_offsets": [start, stop]}


HOSTILE = {
    "pickle": pickle.dumps(Bomb()),
    "absurd header length": struct.pack("<Q", 1 << 62) + b"{" + b" " * 100,
    "header longer than the file": struct.pack("<Q", 99_000_000) + b"{}",
    "header that is no JSON": struct.pack("<Q", 9) + b"{nothing!" + b"\0" * 64,
    "overlapping tensors": _safetensors({"a": _tensor(0, 8, 2), "b": _tensor(4, 12, 2)}, b"\0" * 12),
    "tensor beyond the end": _safetensors({"a": _tensor(0, 1 << 40, 1 << 38)}, b"\0" * 12),
    "shape that lies": _safetensors({"a": _tensor(0, 8, 3)}, b"\0" * 8),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_with_the_right_checksum_are_neither_executed_nor_loaded(folder, kind):
    (folder / WEIGHTS).write_bytes(HOSTILE[kind])
    tree = json.loads((folder / CHECKSUMS).read_text())
    for file in tree["files"]:
        if file["path"] == WEIGHTS:
            file |= {"bytes": len(HOSTILE[kind]), "sha256": hashlib.sha256(HOSTILE[kind]).hexdigest()}
    (folder / CHECKSUMS).write_text(json.dumps(tree))
    refused_unread = kind in ("pickle", "absurd header length", "header longer than the file")
    with pytest.raises(
        ValueError, match="is no safetensors file" if refused_unread else "is no valid safetensors file"
    ):
        load_weights(folder)


WRONG = {
    "missing": (lambda w: w.pop("1.bias"), "1.bias is missing"),
    "foreign": (lambda w: w.update(alien=torch.zeros(1)), "alien is foreign"),
    "shape": (lambda w: w.update({"1.bias": torch.zeros(26)}), r"1.bias has shape \(26,\), expected \(27,\)"),
    "dtype": (lambda w: w.update({"1.bias": w["1.bias"].half()}), "1.bias has dtype float16, expected float32"),
    "nan": (lambda w: w["0.weight"][3, 1].fill_(float("nan")), "0.weight has 1 values of 224 that are not finite"),
    "inf": (lambda w: w["0.weight"][3].fill_(float("inf")), "0.weight has 8 values of 224 that are not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_tensors_are_named_and_the_network_is_unchanged(folder, kind):
    change, message = WRONG[kind]
    weights = {name: tensor.clone() for name, tensor in load_weights(folder).items()}
    change(weights)
    module = network(seed=1)
    with pytest.raises(ValueError, match=message):
        load_into(module, weights)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), network(1).state_dict().values(), strict=True)
    )


def test_all_wrong_tensors_are_named_together_up_to_a_limit():
    with pytest.raises(ValueError, match=r"1.bias is missing; x0 is foreign.*; and 97 more"):
        load_into(network(), {f"x{i}": torch.zeros(1) for i in range(102)})


def test_weights_that_are_not_finite_are_not_saved(tmp_path, tokenizer):
    weights = network().state_dict()
    weights["1.bias"][0] = float("-inf")
    with pytest.raises(ValueError, match=r"1\.bias has 1 values of 27.*; train it with a lower learning_rate"):
        save(tmp_path / "bad", card(tokenizer), weights, tokenizer)
    with pytest.raises(ValueError, match=f"no {CHECKSUMS}"):
        open_folder(tmp_path / "bad")


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path, tokenizer):
    described = card(tokenizer)
    described.require_tokenizer(described.tokenizer_digest, 27)
    with pytest.raises(ValueError, match="knows 27 tokens, the tokenizer has 256"):
        described.require_tokenizer(described.tokenizer_digest, 256)
    with pytest.raises(ValueError, match="tokenizer mismatch"):
        described.require_tokenizer("0" * 64, 27)
    with pytest.raises(
        ValueError, match=r"the card says 0000.*; give the tokenizer file that the model was trained with"
    ):
        save(tmp_path / "bad", card(tokenizer, tokenizer_digest="0" * 64), network().state_dict(), tokenizer)


@pytest.mark.parametrize(
    "changes", [{"kind": "oracle"}, {"vocabulary": 0}, {"tokenizer_digest": "abc"}, {"network": [1]}, {"extra": 1}]
)
def test_a_card_is_strict(tokenizer, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        card(tokenizer, **changes)
