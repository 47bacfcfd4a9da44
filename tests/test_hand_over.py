"""An output is moved where it can be, and is on the disk before it counts."""

import os
from pathlib import Path

import pytest

from edlm.local_cache import LocalCache
from edlm.local_copies import local_copy
from edlm.storage import MARKER, hand_over, local_path, publish
from tests.test_storage import TREE, read, write


@pytest.mark.parametrize("scheme", ["", "file://", "memory:/"])
def test_what_is_handed_over_is_what_was_there_and_takes_no_room_twice(tmp_path, scheme):
    source, uri = write(tmp_path / "source", TREE), f"{scheme}{tmp_path}/out"
    identity = (source / "weights.bin").stat().st_ino
    assert hand_over(source, uri, {"a": 1}).facts == {"a": 1}
    assert read(local_copy(uri, LocalCache(tmp_path / "cache"))) == TREE
    if (target := local_path(uri)) is not None:
        assert (target / "weights.bin").stat().st_ino == identity


@pytest.mark.parametrize("place", ["source", "out"])
def test_the_files_are_on_the_disk_before_the_marker_says_so(tmp_path, monkeypatch, place):
    synced, fsync = [], os.fsync

    def spied(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path).as_posix())

    monkeypatch.setattr(os, "fsync", spied)
    publish(write(tmp_path / "source", TREE), str(tmp_path / place))
    before = synced[: next(i for i, name in enumerate(synced) if name.startswith(f"{place}/.{MARKER}"))]
    names = (*TREE, "deep", "deep/er")
    assert {place, *(f"{place}/{name}" for name in names)} <= set(before)
