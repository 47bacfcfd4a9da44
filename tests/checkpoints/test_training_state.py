import logging
from pathlib import Path

import pytest
import torch

from edlm.checkpoints.training_state import STATE, newest_snapshot, open_snapshot, save_snapshot, snapshots


def state(step: int) -> dict[str, torch.Tensor]:
    return {"weights.a": torch.full((3,), float(step)), "exp_avg.a": torch.arange(3.0)}


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path) -> str:
    return str(tmp_path / "work") if request.param == "local" else f"memory://{tmp_path.name}/work"


def test_the_newest_snapshot_is_found_and_of_older_ones_one_is_kept(workspace):
    assert newest_snapshot(workspace) is None
    for step in (2, 4, 10):
        save_snapshot(workspace, state(step), step)
    actual = newest_snapshot(workspace)
    assert actual is not None
    assert actual[1] == 10
    assert torch.equal(open_snapshot(actual[0])["weights.a"], state(10)["weights.a"])


def test_only_two_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save_snapshot(str(tmp_path), state(step), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "unfinished"])
def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    for step in (2, 4):
        save_snapshot(str(tmp_path), state(step), step)
    newest = tmp_path / "step-00000004"
    file = newest / STATE
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-5])
    elif damage == "altered":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (newest / "_COMMITTED.json").unlink()
    with caplog.at_level(logging.WARNING):
        actual = newest_snapshot(str(tmp_path))
    assert actual is not None
    assert Path(actual[0]).name == "step-00000002"
    assert "step-00000004 is not whole" in caplog.text


def test_what_is_saved_after_going_back_before_two_damaged_snapshots_is_kept(tmp_path):
    """By number alone the damaged ones would be the newest two, and each new snapshot would be removed at once."""
    workspace = str(tmp_path)
    for step in (8, 10):
        save_snapshot(workspace, state(step), step)
    for step in (8, 10):  # a commit without its content
        (tmp_path / f"step-{step:08d}" / STATE).write_bytes(b"damaged")
    assert newest_snapshot(workspace) is None
    for step in (3, 4):
        save_snapshot(workspace, state(step), step)
    actual = newest_snapshot(workspace)
    assert actual is not None
    assert actual[1] == 4
    assert snapshots(workspace) == ["step-00000003", "step-00000004"]
