"""A state that any number of processes saved is read by any number, each its slices alone, every byte verified."""

import math
import uuid
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from edlm.checkpoints import tensor_files
from edlm.checkpoints.snapshot_manifest import read_manifest
from edlm.checkpoints.snapshot_state import SnapshotState
from edlm.checkpoints.snapshot_writer import commit, write_part
from edlm.checkpoints.state_slices import StateSlice, shared_out, whole
from edlm.checkpoints.training_state import open_snapshot, save_snapshot, snapshots
from edlm.storage import StorageError

State = dict[str, Tensor]
shapes = st.lists(st.integers(1, 7), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64])


@st.composite
def states(draw: st.DrawFn) -> State:
    kinds = draw(st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=5))
    return {f"weights.{i}": torch.arange(math.prod(shape)).reshape(shape).to(d) for i, (shape, d) in enumerate(kinds)}


def whole_slices(state: State) -> list[StateSlice]:
    return [whole(name, tensor) for name, tensor in state.items()]


def saved_by(world_size: int, state: State, uri: str) -> SnapshotState:
    for rank in range(world_size):
        write_part(uri, rank, shared_out(whole_slices(state), rank, world_size))
    commit(uri, 1, "attempt", world_size)
    opened = open_snapshot(uri)
    assert isinstance(opened, SnapshotState)
    return opened


def read_by(world_size: int, opened: SnapshotState, state: State) -> State:
    """What ranks read into empty tensors, each its share."""
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for rank in range(world_size):
        opened.fill(shared_out(whole_slices(target), rank, world_size))
    return target


@settings(max_examples=60, deadline=None)
@given(states(), st.integers(1, 4), st.integers(1, 4), st.sampled_from([16, 64, 2**16]))
def test_what_some_ranks_save_others_read(state, writers, readers, chunk):
    tensor_files.CHUNK, before = chunk, tensor_files.CHUNK
    try:
        opened = saved_by(writers, state, f"memory://{uuid.uuid4().hex}")
        actual = read_by(readers, opened, state)
        again = dict(opened)
        opened.verify()
    finally:
        tensor_files.CHUNK = before
    assert opened.shapes == {name: tensor.shape for name, tensor in state.items()}
    assert all(torch.equal(actual[name], tensor) for name, tensor in state.items())
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@given(states(), st.integers(1, 5))
def test_shares_are_equal_and_disjoint_and_together_whole(state, world_size):
    shares = [shared_out(whole_slices(state), rank, world_size) for rank in range(world_size)]
    sizes = [sum(one.values.numel() for one in share) for share in shares]
    assert sum(sizes) == sum(tensor.numel() for tensor in state.values())
    assert max(sizes) - min(sizes) <= 1
    seen = {(one.name, i) for share in shares for one in share for i in range(one.offset, one.stop)}
    assert len(seen) == sum(sizes)


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_rank_reads_little_more_than_its_slices_and_each_byte_once(tmp_path, readers):
    state = {f"{kind}.{i}": torch.randn(300, 500) for kind in ("weights", "exp_avg") for i in range(12)}
    opened = saved_by(2, state, str(tmp_path / "step-00000001-a"))
    read_by(readers, opened, state)
    assert 1.0 <= opened.bytes_read / sum(tensor.nbytes for tensor in state.values()) <= 1.1


@pytest.mark.parametrize("writers", [1, 2])
def test_each_part_is_a_safetensors_file_with_the_slices_by_name(tmp_path, writers):
    state = {"weights.a": torch.arange(6.0).view(2, 3), "validation": torch.tensor([1.5, 2.0], dtype=torch.float64)}
    saved_by(writers, state, str(tmp_path))
    held = {}
    for rank in range(writers):
        with safe_open(tmp_path / f"part-{rank:05d}.safetensors", "pt") as file:
            held |= {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118 - no mapping
    if writers == 1:
        assert held == {"weights.a": list(range(6)), "validation": [1.5, 2.0]}
    else:
        assert held == {"weights.a[0:4]": [0, 1, 2, 3], "weights.a[4:6]": [4, 5], "validation": [1.5, 2.0]}


def test_a_damaged_byte_is_named_by_its_chunk_and_what_lies_elsewhere_is_read(tmp_path):
    state = {"weights.a": torch.randn(50_000), "weights.b": torch.randn(50_000)}
    opened = saved_by(1, state, str(tmp_path))
    file = tmp_path / "part-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert torch.equal(opened["weights.a"], state["weights.a"])
    with pytest.raises(StorageError, match=r"part-00000.safetensors: bytes 393216 to \d+ do not have the SHA-256"):
        opened["weights.b"]


def test_a_dtype_that_was_not_saved_is_refused(tmp_path):
    save_snapshot(str(tmp_path), {"weights.a": torch.zeros(3)}, 1)
    opened = open_snapshot(str(tmp_path / snapshots(str(tmp_path))[0]))
    with pytest.raises(StorageError, match=r"weights\.a is torch\.float32, expected torch\.float64"):
        opened.fill([whole("weights.a", torch.zeros(3, dtype=torch.float64))])


def hole(parts: list[list[StateSlice]]) -> None:
    parts[1].pop()


def overlap(parts: list[list[StateSlice]]) -> None:
    parts[1].append(parts[0][0])


def other_shape(parts: list[list[StateSlice]]) -> None:
    parts[1] = [StateSlice(one.name, torch.Size([one.shape.numel(), 1]), one.offset, one.values) for one in parts[1]]


@pytest.mark.parametrize("change", [hole, overlap, other_shape])
def test_parts_that_are_not_the_whole_state_once_are_not_committed(tmp_path, change):
    state = {"weights.a": torch.arange(6.0).view(2, 3)}
    parts = [shared_out(whole_slices(state), rank, 2) for rank in range(2)]
    change(parts)
    for rank, slices in enumerate(parts):
        write_part(str(tmp_path), rank, slices)
    with pytest.raises(StorageError, match=r"not hold each element of weights\.a exactly once|shape of weights\.a"):
        commit(str(tmp_path), 1, "attempt", 2)
    assert read_manifest(str(tmp_path)) is None


def test_a_part_that_was_lost_before_the_commit_prevents_it(tmp_path):
    write_part(str(tmp_path), 0, whole_slices({"weights.a": torch.zeros(3)}))
    Path(tmp_path / "part-00000.safetensors").unlink()
    with pytest.raises(StorageError, match=r"part-00000\.safetensors is missing"):
        commit(str(tmp_path), 1, "attempt", 1)
