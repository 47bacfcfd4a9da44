"""Snapshots in the background: a copy is written, refusals are tried again or reported, and what was there stays."""

import errno
import logging
import threading

import pytest
import torch

from edlm.checkpoints import snapshot_writer
from edlm.checkpoints.lease import LeaseLost
from edlm.checkpoints.snapshot_retention import Retention
from edlm.checkpoints.snapshot_writer import SnapshotWriter
from edlm.checkpoints.state_slices import shared_out, whole
from edlm.checkpoints.training_state import newest_snapshot, open_snapshot, snapshots
from edlm.storage import StorageError


def slices(value: float, rank: int = 0, world_size: int = 1):
    return shared_out([whole("weights.a", torch.full((10,), value))], rank, world_size)


@pytest.fixture
def quick(monkeypatch):
    """No pause between attempts."""
    monkeypatch.setattr(snapshot_writer, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(snapshot_writer, "FIRST_PAUSE", 0.01)


class Refusing:
    """Stands for the writing of a part: refuses some times, then writes."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error, self.write = times, error, snapshot_writer.write_part

    def __call__(self, *arguments) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        self.write(*arguments)


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_what_is_written_is_the_state_when_it_was_saved(tmp_path, monkeypatch):
    gate = threading.Event()
    write = snapshot_writer.write_part
    monkeypatch.setattr(snapshot_writer, "write_part", lambda *given: (gate.wait(60), write(*given)))
    weights = torch.zeros(10)
    writer = SnapshotWriter(str(tmp_path), "a")
    writer.save([whole("weights.a", weights)], 1)
    weights.fill_(7)  # training goes on
    assert newest_snapshot(str(tmp_path)) is None
    gate.set()
    writer.wait()
    assert open_snapshot(newest_snapshot(str(tmp_path))[0])["weights.a"].eq(0).all()


def test_host_memory_is_that_of_the_state_once_however_often_it_is_saved(tmp_path):
    writer, addresses = SnapshotWriter(str(tmp_path), "a"), set()
    for step in (1, 2, 3):
        writer.save(slices(step), step)
        writer.wait()
        addresses |= {host.data_ptr() for host in writer._host}
        assert open_snapshot(newest_snapshot(str(tmp_path))[0])["weights.a"].eq(step).all()
    assert len(addresses) == 1


@pytest.mark.usefixtures("quick")
def test_a_store_that_refuses_for_a_while_is_tried_again_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(snapshot_writer, "write_part", Refusing(3, FULL))
    writer = SnapshotWriter(str(tmp_path), "a", patience=60)
    with caplog.at_level(logging.WARNING):
        writer.save(slices(1), 1)
        writer.wait()
    assert newest_snapshot(str(tmp_path))[1] == 1
    assert caplog.text.count("could not be written (OSError: [Errno 28] No space left on device); next attempt") == 3


@pytest.mark.usefixtures("quick")
def test_a_snapshot_does_not_count_before_what_must_precede_it_has_succeeded(tmp_path):
    seen = []

    def first() -> None:
        seen.append(newest_snapshot(str(tmp_path)))
        if len(seen) < 3:
            raise FULL

    writer = SnapshotWriter(str(tmp_path), "a", patience=60, before_commit=first)
    writer.save(slices(1), 1)
    writer.wait()
    assert seen == [None, None, None]
    assert newest_snapshot(str(tmp_path))[1] == 1


@pytest.mark.usefixtures("quick")
def test_a_lease_that_is_lost_before_the_manifest_ends_the_saving_at_once_and_nothing_counts(tmp_path, monkeypatch):
    """Lost while the store did not take the manifest: the lease is looked at before each attempt."""
    asked = []

    def lost_later() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise LeaseLost("this command no longer owns the workspace")

    monkeypatch.setattr(snapshot_writer, "write_manifest", Refusing(10**9, FULL))
    writer = SnapshotWriter(str(tmp_path), "a", patience=600, before_commit=lost_later)
    writer.save(slices(1), 1)
    with pytest.raises(LeaseLost, match="no longer owns"):
        writer.wait()
    assert len(asked) == 3
    assert newest_snapshot(str(tmp_path)) is None


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_an_error_after_patience_and_the_snapshot_before_stays(tmp_path, monkeypatch):
    writer = SnapshotWriter(str(tmp_path), "a", patience=0.05)
    writer.save(slices(1), 1)
    writer.wait()
    monkeypatch.setattr(snapshot_writer, "write_part", Refusing(10**9, FULL))
    writer.save(slices(2), 2)
    with pytest.raises(StorageError, match=r"rank 0 cannot write the checkpoint after step 2; the one before is still"):
        writer.wait()
    assert newest_snapshot(str(tmp_path))[1] == 1
    monkeypatch.undo()
    writer.save(slices(3), 3)
    writer.wait()
    assert newest_snapshot(str(tmp_path))[1] == 3


@pytest.mark.usefixtures("quick")
def test_a_store_that_never_answers_is_an_error_after_patience(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(snapshot_writer, "write_part", lambda *_: gate.wait(60))
    writer = SnapshotWriter(str(tmp_path), "a", patience=0.05)
    writer.save(slices(1), 1)
    with pytest.raises(StorageError, match="is not written yet"):
        writer.wait()
    gate.set()


def test_rank_0_commits_when_the_parts_of_all_ranks_are_there_in_whatever_order(tmp_path):
    writers = [SnapshotWriter(str(tmp_path), "a", rank, 3) for rank in range(3)]
    for rank in (0, 2, 1):
        assert newest_snapshot(str(tmp_path)) is None
        writers[rank].save(slices(5, rank, 3), 1)
    for writer in writers:
        writer.wait()
    assert open_snapshot(newest_snapshot(str(tmp_path))[0])["weights.a"].eq(5).all()


@pytest.mark.usefixtures("quick")
def test_a_rank_whose_part_does_not_come_is_named(tmp_path):
    writer = SnapshotWriter(str(tmp_path), "a", 0, 2, patience=0.05)
    writer.save(slices(5, 0, 2), 1)
    with pytest.raises(StorageError, match=r"after 0 s part-00001\.json is not written \(1 missing\)"):
        writer.wait()
    assert newest_snapshot(str(tmp_path)) is None


def test_an_old_snapshot_that_cannot_be_removed_does_not_fail_the_new_one(tmp_path, monkeypatch, caplog):
    def refused(*_):
        raise PermissionError("read-only")

    writer = SnapshotWriter(str(tmp_path), "a", retention=Retention(keep=1))
    monkeypatch.setattr(snapshot_writer, "retain", refused)
    for step in (1, 2):
        writer.save(slices(step), step)
        writer.wait()
    assert "stay for now (PermissionError: read-only)" in caplog.text
    monkeypatch.undo()
    writer.save(slices(3), 3)
    writer.wait()
    assert snapshots(str(tmp_path)) == ["step-00000003-a"]
