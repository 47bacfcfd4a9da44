"""Weights in shards are those in one file, bit for bit, in the memory of one shard; what does not fit is named."""

import hashlib
import json
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edlm.checkpoints import weight_files
from edlm.checkpoints.model_folder import (
    CHECKSUMS,
    TOKENIZER,
    ModelCard,
    digest,
    load_into,
    load_weights,
    open_folder,
    save_model,
)
from edlm.checkpoints.snapshot_writer import commit, write_part
from edlm.checkpoints.state_slices import StateSlice, StateSource, shared_out, whole
from edlm.checkpoints.training_state import open_snapshot
from edlm.checkpoints.weight_files import INDEX, WEIGHTS, write_files, write_weights

SHARD = 400  # bytes


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(28, 8), *(nn.Linear(8, 8) for _ in range(5)))


def save(folder: Path, tokenizer: Path, weights: Mapping[str, Tensor], limit: int = SHARD) -> str:
    """Save a model in shards of at most `limit` bytes."""
    sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    card = ModelCard(kind="denoiser", network={"width": 8}, vocabulary=27, length=16, tokenizer_digest=sha256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_files, "SHARD_BYTES", limit)
        return save_model(folder, card, weights, tokenizer)


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    save(tmp_path / "model", tokenizer, network().state_dict())
    return tmp_path / "model"


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return set(first) == set(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("weights-*.safetensors"))


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
shapes = st.lists(st.integers(0, 4), max_size=3)
specs = st.dictionaries(st.text("ab.0é", min_size=1, max_size=6), st.tuples(shapes, dtypes), max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(spec=specs, limit=st.integers(1, 600), ranks=st.integers(1, 3))
def test_shards_of_any_size_hold_the_weights_of_one_file_bit_for_bit(tmp_path, tokenizer, spec, limit, ranks):
    weights = {name: torch.randint(-9, 9, tuple(shape)).to(dtype) for name, (shape, dtype) in spec.items()}
    made = save(tmp_path / "model", tokenizer, weights, limit)
    back = load_weights(tmp_path / "model")
    assert same(back, weights)
    total = sum(tensor.nbytes for tensor in weights.values())
    files = [load_file(path) for path in shards(tmp_path / "model")]
    assert bool(files) == (tmp_path / "model" / INDEX).is_file() == (not (tmp_path / "model" / WEIGHTS).exists())
    assert files or total <= limit or len(weights) == 1
    for file in files:
        assert len(file) == 1 or sum(tensor.nbytes for tensor in file.values()) <= limit
    assert save(tmp_path / "model", tokenizer, dict(reversed(weights.items())), limit) == made
    filled = {name: tensor for name, tensor in weights.items() if tensor.numel()}
    if filled:
        snapshot = str(tmp_path / "snapshot" / f"{made[:8]}-{ranks}")
        assert save(tmp_path / "model", tokenizer, saved_by(snapshot, filled, ranks), limit) == save(
            tmp_path / "model", tokenizer, filled, limit
        )


def saved_by(uri: str, weights: Mapping[str, Tensor], ranks: int) -> StateSource:
    """The weights as a training of that many ranks leaves them."""
    for rank in range(ranks):
        write_part(uri, rank, shared_out([whole(name, tensor) for name, tensor in weights.items()], rank, ranks))
    commit(uri, 1, "attempt", ranks)
    return open_snapshot(uri)


def test_a_model_of_one_shard_is_the_folder_that_it_was_before_there_were_shards(tmp_path, tokenizer):
    weights = {**network().state_dict(), "steps": torch.tensor(3), "half": torch.ones(3, dtype=torch.bfloat16)}
    total = sum(tensor.nbytes for tensor in weights.values())
    save(tmp_path / "model", tokenizer, weights, limit=total)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "before")
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == (tmp_path / "before").read_bytes()
    names = [file["path"] for file in json.loads((tmp_path / "model" / CHECKSUMS).read_text())["files"]]
    assert names == ["model.yaml", TOKENIZER, WEIGHTS]
    save(tmp_path / "model", tokenizer, weights, limit=total - 1)
    assert len(shards(tmp_path / "model")) == 2


def test_the_index_is_that_of_transformers(folder):
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in network().state_dict().values())}
    for path in shards(folder):
        assert sorted(load_file(path)) == sorted(n for n, file in index["weight_map"].items() if file == path.name)


def test_a_model_saved_again_leaves_no_files_of_the_one_before(folder, tokenizer):
    save(folder, tokenizer, network(1).state_dict(), limit=10**6)
    assert not (folder / INDEX).exists()
    assert not shards(folder)
    save(folder, tokenizer, network(2).state_dict(), limit=2 * SHARD)
    assert not (folder / WEIGHTS).exists()
    assert same(load_weights(folder), network(2).state_dict())


def test_killed_between_two_shards_a_save_leaves_no_model(folder, tokenizer, monkeypatch):
    class KilledShard(BaseException):
        pass

    def killed(tensors, path):
        if "00002" in path.name:
            raise KilledShard
        save_file(tensors, path)

    monkeypatch.setattr(weight_files, "save_file", killed)
    with pytest.raises(KilledShard):
        save(folder, tokenizer, network(1).state_dict())
    with pytest.raises(ValueError, match=f"no {CHECKSUMS}"):
        load_weights(folder)
    monkeypatch.undo()
    save(folder, tokenizer, network(1).state_dict())
    assert same(load_weights(folder), network(1).state_dict())


def test_what_is_not_finite_is_named_across_shards(folder, tokenizer):
    weights = network().state_dict()
    weights["1.bias"][0], weights["5.bias"][:2] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"1\.bias has 1 values of 8.*5\.bias has 2 values of 8"):
        save(folder, tokenizer, weights)
    with pytest.raises(ValueError, match=f"no {CHECKSUMS}"):
        open_folder(folder)


class LiveBytes:
    """Bytes of the tensors that were announced and are still in memory, and the most that there were."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        size, storage = tensor.nbytes, tensor.untyped_storage()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


class CountedSource(StateSource):
    """Weights that are read into what `fill` is given, which is counted."""

    def __init__(self, source: StateSource, counted: LiveBytes) -> None:
        self._source, self._counted = source, counted

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        return self._source.shapes

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        return self._source.dtypes

    def fill(self, slices: Iterable[StateSlice]) -> None:
        slices = list(slices)
        for one in slices:
            self._counted.add(one.values)
        self._source.fill(slices)

    def __getitem__(self, name: str) -> Tensor:
        raise AssertionError("weights are read by the shard, in few reads of the store")


def test_one_shard_is_in_memory_at_a_time(tmp_path, tokenizer):
    weights, counted = network().state_dict(), LiveBytes()
    largest = max(tensor.nbytes for tensor in weights.values())
    source = CountedSource(saved_by(str(tmp_path / "snapshot"), weights, 3), counted)
    save(tmp_path / "model", tokenizer, source, limit=largest)
    assert len(shards(tmp_path / "model")) > 2
    assert 0 < counted.peak <= largest
    assert counted.live == 0
    assert same(load_weights(tmp_path / "model"), weights)


class CountedWeights(Mapping[str, Tensor]):
    """Weights of which each access returns a copy, which is counted."""

    def __init__(self, weights: Mapping[str, Tensor], counted: LiveBytes) -> None:
        self._weights, self._counted = weights, counted

    def __getitem__(self, name: str) -> Tensor:
        copy = self._weights[name].clone()
        self._counted.add(copy)
        return copy

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def test_weights_are_loaded_one_tensor_after_the_other(folder):
    weights, counted, module = load_weights(folder), LiveBytes(), network(1)
    load_into(module, CountedWeights(weights, counted))
    assert same(module.state_dict(), network().state_dict())
    assert 0 < counted.peak <= max(tensor.nbytes for tensor in weights.values())


def _edit(folder: Path, change) -> None:
    """Change the index, and let the checksums agree with the files there are."""
    tree = json.loads((folder / INDEX).read_text())
    change(tree)
    (folder / INDEX).write_text(json.dumps(tree))
    _agree(folder)


def _agree(folder: Path) -> None:
    tree = json.loads((folder / CHECKSUMS).read_text())
    for file in tree["files"]:
        content = (folder / file["path"]).read_bytes()
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / CHECKSUMS).write_text(json.dumps(tree))


def _torn(folder: Path, content: str) -> None:
    (folder / INDEX).write_text(content)
    _agree(folder)


def _unlist(folder: Path, name: str) -> None:
    """Remove a file and its mention in the checksums."""
    (folder / name).unlink()
    tree = json.loads((folder / CHECKSUMS).read_text())
    tree["files"] = [file for file in tree["files"] if file["path"] != name]
    (folder / CHECKSUMS).write_text(json.dumps(tree))


def _flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


DAMAGE = {
    "missing shard": (lambda f: shards(f)[1].unlink(), "'weights-00002-of-.*' is missing"),
    "shard in no checksums": (lambda f: _unlist(f, shards(f)[1].name), "'weights-00002-of-.*' is missing"),
    "missing index": (lambda f: (f / INDEX).unlink(), f"'{INDEX}' is missing"),
    "index in no checksums": (lambda f: _unlist(f, INDEX), f"'{WEIGHTS}' is missing"),
    "flipped bit": (lambda f: _flip(shards(f)[-1]), "has SHA-256"),
    "pickled shard": (lambda f: shards(f)[0].write_bytes(b"\x80\x04" + b" " * 99), "is no safetensors file"),
    "foreign shard": (lambda f: (f / "weights-00009-of-00009.safetensors").write_bytes(b""), "unexpected file"),
    "whole file beside the shards": (lambda f: (f / WEIGHTS).write_bytes(b""), "unexpected file"),
    "torn index": (lambda f: _torn(f, (f / INDEX).read_text()[:50]), f"{INDEX} is damaged"),
    "index that is a list": (lambda f: _torn(f, "[]"), "holds no JSON object"),
    "path in the index": (lambda f: _edit(f, lambda t: t["weight_map"].update(x="../x.safetensors")), "weight_map"),
    "tensor that is not there": (
        lambda f: _edit(f, lambda t: t["weight_map"].update(x=shards(f)[0].name)),
        f"is not what {INDEX} says: x is missing",
    ),
    "tensor of no name": (
        lambda f: _edit(f, lambda t: t["weight_map"].pop("1.weight")),
        f"is not what {INDEX} says: 1.weight is not named for it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_shards_are_refused_with_the_name_of_the_file(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_weights(folder)


def test_weights_that_another_index_names_are_not_written(folder, tmp_path):
    files = weight_files.read_index(folder).files
    weights = network().state_dict()
    first = weights.pop("1.bias")
    with pytest.raises(ValueError, match=r"not of one model: 1\.bias in one of them only"):
        write_files(tmp_path, weights, files)
    write_files(tmp_path, {**weights, "1.bias": first}, files)
    assert [path.read_bytes() for path in shards(tmp_path)] == [path.read_bytes() for path in shards(folder)]


def test_no_weights_are_an_empty_file(tmp_path):
    assert write_weights(tmp_path, {}) == (WEIGHTS,)
    assert load_file(tmp_path / WEIGHTS) == {}


def test_shards_are_part_of_the_digest(folder, tokenizer, tmp_path):
    weights = network(1).state_dict()
    weights["5.bias"] = network().state_dict()["5.bias"]
    assert digest(folder) != save(tmp_path / "other", tokenizer, weights)
