"""What is kept: the newest by number, others by age; what killed attempts left goes, what runs is not touched."""

import os
from pathlib import Path

import pytest
import torch

from edlm.checkpoints.snapshot_manifest import MANIFEST
from edlm.checkpoints.snapshot_retention import Retention, remove, retain, snapshots, sweep
from edlm.checkpoints.snapshot_writer import commit, write_part
from edlm.checkpoints.state_slices import whole
from edlm.checkpoints.training_state import newest_snapshot


def save(workspace: Path, step: int, attempt: str = "a", hours_ago: float = 0) -> str:
    uri = workspace / f"step-{step:08d}-{attempt}"
    write_part(str(uri), 0, [whole("weights.a", torch.zeros(3))])
    commit(str(uri), step, attempt, 1)
    if hours_ago:
        now = (uri / MANIFEST).stat().st_mtime
        os.utime(uri / MANIFEST, (now, now - 3600 * hours_ago))
    return str(uri)


def half(workspace: Path, step: int, attempt: str) -> None:
    write_part(str(workspace / f"step-{step:08d}-{attempt}"), 0, [whole("weights.a", torch.zeros(3))])


def names(workspace: Path) -> list[str]:
    return [name.removeprefix("step-").lstrip("0") for name in snapshots(str(workspace))]


@pytest.mark.parametrize("keep", range(1, 10))
def test_the_newest_are_kept_by_number(tmp_path, keep):
    """After every one of ten: as many as are asked for, once there are so many."""
    for step in range(1, 11):
        retain(str(tmp_path), save(tmp_path, step), Retention(keep=keep))
        assert names(tmp_path) == [f"{kept}-a" for kept in range(max(1, step + 1 - keep), step + 1)]


def test_others_are_kept_by_age(tmp_path):
    for step, hours_ago in ((1, 5), (2, 3), (3, 1)):
        save(tmp_path, step, hours_ago=hours_ago)
    retain(str(tmp_path), save(tmp_path, 4), Retention(keep=1, keep_hours=4))
    assert names(tmp_path) == ["2-a", "3-a", "4-a"]


def test_those_of_the_same_or_a_later_step_were_skipped_as_damaged_and_go(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    retain(str(tmp_path), save(tmp_path, 2, "b"), Retention())
    assert names(tmp_path) == ["1-a", "2-b"]


def test_an_uncommitted_one_takes_the_place_of_none(tmp_path):
    save(tmp_path, 1)
    half(tmp_path, 2, "a")
    retain(str(tmp_path), save(tmp_path, 3), Retention(keep=2))
    assert names(tmp_path) == ["1-a", "3-a"]


def test_a_start_sweeps_what_killed_attempts_left_half_written_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    half(tmp_path, 2, "killed")
    half(tmp_path, 2, "running")
    (tmp_path / "journal").mkdir()
    sweep(str(tmp_path), "running")
    assert names(tmp_path) == ["1-a", "2-running"]
    assert (tmp_path / "journal").is_dir()
    sweep(str(tmp_path / "missing"), "running")


def test_a_removal_that_is_interrupted_leaves_an_uncommitted_snapshot_and_no_damaged_one(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    save(tmp_path, 1)

    class KilledRemoval(BaseException):
        pass

    def killed(*_, **__):
        raise KilledRemoval

    monkeypatch.setattr(LocalFileSystem, "rm", killed)
    with pytest.raises(KilledRemoval):
        remove(str(tmp_path), ["step-00000001-a"])
    assert (tmp_path / "step-00000001-a" / "part-00000.safetensors").exists()
    assert newest_snapshot(str(tmp_path)) is None


def test_steps_are_in_the_order_of_their_numbers(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        save(tmp_path, step)
    assert names(tmp_path) == ["5-a", "99999999-a", "100000000-a"]
