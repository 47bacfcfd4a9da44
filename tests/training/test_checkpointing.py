"""Checkpoints of a training: resumed from the newest that can be read, by all ranks alike, or with an error."""

import contextlib

import pytest
import torch

from edlm.checkpoints import snapshot_writer
from edlm.checkpoints.training_state import NoValidSnapshot, newest_snapshot, save_snapshot, snapshots
from edlm.storage import StorageError
from edlm.training.checkpointing import Checkpointing, raise_on_all
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from tests.toy import Toy, rows, training

SETTINGS = training(checkpoint_every=2)


def trained(workspace, steps: int = 6, resume: bool = True) -> tuple[LocalEngine, tuple[str, int] | None]:
    """An engine after `steps` steps, checkpointed every two, and what it resumed from."""
    settings = training(steps=steps, checkpoint_every=2, decay="constant")
    engine = LocalEngine(Toy(), settings)
    checkpointing = Checkpointing(engine, str(workspace))
    origin = checkpointing.resume() if resume else None
    with checkpointing:
        fit(engine, rows, settings, 0, lambda *_: None, checkpointing.save)
    return engine, origin


def equal(left: LocalEngine, right: LocalEngine) -> bool:
    return all(torch.equal(right.state()[name], tensor) for name, tensor in left.state().items())


def alter(workspace, name: str) -> None:
    """Change one byte of a snapshot's content, so that only reading it shows it."""
    file = workspace / name / "part-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_training_resumes_from_its_newest_checkpoint_with_the_same_result(tmp_path):
    whole, origin = trained(tmp_path / "whole")
    assert origin is None
    trained(tmp_path / "parts", 4)
    resumed, origin = trained(tmp_path / "parts")
    assert origin[1] == 4
    assert equal(whole, resumed)


def test_a_checkpoint_whose_content_is_damaged_is_passed_over_for_the_one_before(tmp_path, caplog):
    whole, _ = trained(tmp_path / "whole")
    trained(tmp_path / "parts", 4)
    alter(tmp_path / "parts", snapshots(str(tmp_path / "parts"))[-1])
    resumed, origin = trained(tmp_path / "parts")
    assert origin[1] == 2
    assert "do not have the SHA-256" in caplog.text
    assert equal(whole, resumed)
    assert newest_snapshot(str(tmp_path / "parts"))[1] == 6


def test_training_does_not_begin_again_where_every_checkpoint_is_damaged(tmp_path):
    trained(tmp_path, 4)
    for name in snapshots(str(tmp_path)):
        alter(tmp_path, name)
    with pytest.raises(NoValidSnapshot, match=r"none of the checkpoints .* can be resumed from .*restore one"):
        trained(tmp_path)


def test_a_checkpoint_of_another_network_is_passed_over_and_named(tmp_path):
    trained(tmp_path, 4)
    save_snapshot(str(tmp_path), {"weights.9.bias": torch.zeros(1)}, 5)
    assert trained(tmp_path)[1][1] == 4
    for name in snapshots(str(tmp_path)):
        alter(tmp_path, name)
    save_snapshot(str(tmp_path), {"weights.9.bias": torch.zeros(1)}, 7)
    with pytest.raises(NoValidSnapshot, match="does not fit this network"):
        trained(tmp_path)


def test_the_start_is_taken_where_the_workspace_has_no_checkpoint(tmp_path):
    trained(tmp_path / "short", 4)
    start = newest_snapshot(str(tmp_path / "short"))
    engine = LocalEngine(Toy(), training(steps=6, decay="constant"))
    assert Checkpointing(engine, str(tmp_path / "long")).resume(start) == start
    assert engine.step == 4
    trained(tmp_path / "long", 2)
    assert Checkpointing(engine, str(tmp_path / "long")).resume(start)[1] == 2


def test_the_start_of_a_training_removes_what_a_killed_one_left(tmp_path):
    trained(tmp_path, 4)
    half = tmp_path / "step-00000006-killed"
    half.mkdir()
    (half / "part-00000.safetensors").write_bytes(b"half")
    trained(tmp_path)
    assert not half.exists()


def test_a_checkpoint_that_cannot_be_written_stops_training_at_the_next_one_with_the_one_before_intact(
    tmp_path, monkeypatch
):
    write = snapshot_writer.write_part

    def refused(uri, *given):
        if "step-00000004" in uri:
            raise StorageError("refused")
        write(uri, *given)

    monkeypatch.setattr(snapshot_writer, "write_part", refused)
    with pytest.raises(StorageError, match="cannot write the checkpoint after step 4; the one before is still there"):
        trained(tmp_path)
    assert newest_snapshot(str(tmp_path))[1] == 2


def test_a_training_that_ends_with_an_error_keeps_the_checkpoint_that_was_being_written(tmp_path):
    engine = LocalEngine(Toy(), SETTINGS)
    fit(engine, rows, training(steps=2), 0, lambda *_: None, lambda _: None)
    with contextlib.suppress(ZeroDivisionError), Checkpointing(engine, str(tmp_path)) as checkpointing:
        checkpointing.save(engine)
        _ = 1 / 0
    assert newest_snapshot(str(tmp_path))[1] == 2


class OfTwo(LocalEngine):
    """One of two ranks, the other of which failed or not."""

    world_size = 2

    def __init__(self, rank: int, failed: bool) -> None:
        super().__init__(Toy(), SETTINGS)
        self.rank, self.other = rank, torch.tensor(float(failed))

    def gather(self, values):
        return torch.stack([values, self.other] if self.rank == 0 else [self.other, values])


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_is_raised_on_all(rank):
    raise_on_all(OfTwo(rank, failed=False), None)
    with pytest.raises(StorageError, match=f"rank {1 - rank} of 2 failed"):
        raise_on_all(OfTwo(rank, failed=True), None)
    with pytest.raises(StorageError, match="mine"):
        raise_on_all(OfTwo(rank, failed=False), StorageError("mine"))
