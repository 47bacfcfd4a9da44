"""The newest whole snapshot is taken; what is passed over is named; if none is whole, training does not begin again."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edlm.checkpoints.snapshot_manifest import MANIFEST
from edlm.checkpoints.snapshot_retention import sweep
from edlm.checkpoints.training_state import (
    GATHERED,
    NoValidSnapshot,
    keep_final,
    newest_snapshot,
    open_snapshot,
    save_snapshot,
    snapshot_facts,
    snapshots,
    verify_snapshot,
)
from edlm.file_systems import file_system
from edlm.storage import StorageError, publish

BROKEN = Path("/sys/devices/virtual/net/lo/power/autosuspend_delay_ms")


def state(step: int) -> dict[str, torch.Tensor]:
    return {"weights.a": torch.full((3,), float(step)), "exp_avg.a": torch.arange(3.0)}


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path) -> str:
    return str(tmp_path / "work") if request.param == "local" else f"memory://{tmp_path.name}/work"


def steps(workspace: str) -> list[int]:
    return [int(name.split("-")[1]) for name in snapshots(workspace)]


def saved(workspace: Path, *steps: int) -> Path:
    """The folder of the last of the snapshots saved after these steps."""
    for step in steps:
        save_snapshot(str(workspace), state(step), step)
    return workspace / snapshots(str(workspace))[-1]


def test_the_newest_snapshot_is_found_with_its_facts_and_of_older_ones_one_is_kept(workspace):
    assert newest_snapshot(workspace) is None
    for step in (2, 4, 10):
        save_snapshot(workspace, state(step), step, {"seed": step})
    actual = newest_snapshot(workspace)
    assert actual is not None
    assert actual[1] == 10
    assert torch.equal(open_snapshot(actual[0])["weights.a"], state(10)["weights.a"])
    assert snapshot_facts(actual[0]) == {"seed": 10}
    assert steps(workspace) == [4, 10]


def test_a_snapshot_that_an_earlier_version_gathered_in_one_file_is_read(workspace, tmp_path):
    folder = tmp_path / "gathered"
    folder.mkdir()
    save_file(state(7), folder / GATHERED)
    publish(folder, f"{workspace}/step-00000007", {"step": 7, "seed": 3})
    uri, step = newest_snapshot(workspace)
    assert step == 7
    verify_snapshot(uri)
    assert snapshot_facts(uri)["seed"] == 3
    opened = open_snapshot(uri)
    assert {name: tensor.tolist() for name, tensor in opened.items()} == {n: t.tolist() for n, t in state(7).items()}
    save_snapshot(workspace, state(8), 8)
    assert steps(workspace) == [7, 8]


def rewrite(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def newer_format(content: bytes) -> bytes:
    tree = json.loads(content)
    tree["manifest"]["format"] = 99
    return json.dumps(tree).encode()


SHALLOW = {
    "torn": (MANIFEST, lambda content: content[:-5], "is damaged"),
    "empty": (MANIFEST, lambda _: b"", "is damaged .it is empty"),
    "not text": (MANIFEST, lambda content: b"\xff" + content, "is damaged"),
    "altered": (MANIFEST, lambda content: content.replace(b'"step": 4', b'"step": 5'), "is damaged .its SHA-256"),
    "newer": (MANIFEST, newer_format, "has format 99.*a newer one wrote it"),
    "truncated": ("part-00000.safetensors", lambda content: content[:-5], "has .* bytes, expected"),
}


@pytest.mark.parametrize("damage", SHALLOW)
def test_a_damaged_snapshot_is_named_with_the_reason_and_the_one_before_is_used(tmp_path, damage, caplog):
    newest = saved(tmp_path, 2, 4)
    file, change, reason = SHALLOW[damage]
    rewrite(newest / file, change)
    with caplog.at_level(logging.WARNING):
        assert newest_snapshot(str(tmp_path))[1] == 2
    assert caplog.records[0].getMessage().startswith(f"checkpoint {newest} is passed over: ")
    with pytest.raises(NoValidSnapshot, match=f"(?s){reason}"):
        newest_snapshot(str(tmp_path), {str(p): "it is of another network" for p in tmp_path.iterdir() if p != newest})


@pytest.mark.parametrize("file", ["part-00000.safetensors", "part-00000.sha256"])
def test_a_snapshot_that_lacks_a_file_is_passed_over(tmp_path, file, caplog):
    newest = saved(tmp_path, 2, 4)
    (newest / file).unlink()
    assert newest_snapshot(str(tmp_path))[1] == 2
    assert f"{file} is missing" in caplog.text


@pytest.mark.parametrize("file", ["part-00000.safetensors", "part-00000.sha256"])
def test_altered_content_is_found_when_it_is_read(tmp_path, file):
    newest = saved(tmp_path, 2)
    rewrite(newest / file, lambda content: content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    uri, _ = newest_snapshot(str(tmp_path))
    with pytest.raises(StorageError, match="SHA-256"):
        verify_snapshot(uri)
    with pytest.raises(StorageError, match="SHA-256"):
        open_snapshot(uri)["exp_avg.a"]


def unreadable(path: Path) -> None:
    """Put what gives the error of a broken disk (EIO) when it is read in place of a file."""
    if not BROKEN.exists():
        pytest.skip(f"no {BROKEN}")
    path.unlink()
    path.symlink_to(BROKEN)


def test_a_manifest_that_the_disk_cannot_give_back_is_named_and_the_snapshot_before_is_used(tmp_path, caplog):
    newest = saved(tmp_path, 2, 4)
    unreadable(newest / MANIFEST)
    assert newest_snapshot(str(tmp_path))[1] == 2
    assert f"checkpoint {newest} is passed over: {newest / MANIFEST} cannot be read ([Errno 5] Input" in caplog.text
    sweep(str(tmp_path), "next")
    assert steps(str(tmp_path)) == [2, 4]


def test_content_that_the_disk_cannot_give_back_is_named_when_it_is_read(tmp_path):
    snapshot = saved(tmp_path, 2)
    state = open_snapshot(str(snapshot))
    unreadable(snapshot / "part-00000.sha256")
    with pytest.raises(StorageError, match=r"part-00000\.sha256 cannot be read .*Input/output error"):
        state["exp_avg.a"]


def test_a_disk_that_is_away_passes_no_snapshot_over_and_removes_none(tmp_path):
    """A link to itself has an error that is neither of a missing nor of a broken file."""
    manifest = saved(tmp_path, 2, 4) / MANIFEST
    manifest.unlink()
    manifest.symlink_to(manifest)
    for ask in (newest_snapshot, lambda workspace: sweep(workspace, "next")):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            ask(str(tmp_path))
    assert steps(str(tmp_path)) == [2, 4]


def test_if_every_snapshot_is_damaged_the_error_names_each_and_what_to_do(tmp_path):
    for step in (2, 4):
        rewrite(saved(tmp_path, step) / MANIFEST, lambda _: b"")
    with pytest.raises(NoValidSnapshot, match=r"step-00000004-\w+: .*; step-00000002-\w+: .*delete these folders"):
        newest_snapshot(str(tmp_path))


def test_where_no_snapshot_was_ever_committed_training_begins_at_step_0(tmp_path, caplog):
    (saved(tmp_path, 2) / MANIFEST).unlink()
    assert newest_snapshot(str(tmp_path)) is None
    assert "it was not written to its end" in caplog.text


def test_foreign_files_in_a_workspace_or_a_snapshot_do_not_matter(workspace):
    save_snapshot(workspace, state(3), 3)
    system, root = file_system(workspace)
    for name in ("step-x/file", ".nfs0001", f"{snapshots(workspace)[0]}/.nfs0001", "ray/step-00000009"):
        system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        system.pipe_file(f"{root}/{name}", b"foreign")
    assert newest_snapshot(workspace)[1] == 3
    save_snapshot(workspace, state(4), 4)
    assert steps(workspace) == [3, 4]


def test_what_is_saved_after_going_back_before_two_damaged_snapshots_is_kept(tmp_path):
    """By number alone the damaged ones would be the newest two, and each new snapshot would be removed at once."""
    workspace = str(tmp_path)
    for step in (8, 10):
        rewrite(saved(tmp_path, step) / "part-00000.safetensors", lambda _: b"damaged")
    for step in (3, 4):
        save_snapshot(workspace, state(step), step)
    assert newest_snapshot(workspace)[1] == 4
    assert steps(workspace) == [3, 4]


def test_of_a_finished_training_the_last_state_or_none_is_kept(workspace):
    for step in (3, 4):
        save_snapshot(workspace, state(step), step)
    keep_final(workspace, 4)
    assert steps(workspace) == [4]
    keep_final(workspace, None)
    assert steps(workspace) == []
