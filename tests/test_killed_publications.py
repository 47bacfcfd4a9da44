"""What publications leave that are killed: it is not foreign, and is removed."""

import pytest

from edlm.atomic_file import UNFINISHED
from edlm.file_systems import file_system
from edlm.local_cache import LocalCache
from edlm.local_copies import local_copy
from edlm.storage import INTENT, MARKER, committed, join, publish, remove_leftovers, write_text
from tests.test_storage import TREE, read, write


@pytest.mark.parametrize(
    "name", [f".{MARKER}.x1y2", f".{INTENT}.x1y2", f".{INTENT}.x1y2{UNFINISHED}", ".nfs0000001", "deep/.nfs0000001"]
)
def test_what_a_killed_publication_or_nfs_leaves_is_not_foreign(tmp_path, name):
    target = str(tmp_path / "out")
    publish(write(tmp_path / "a", TREE), target)
    (tmp_path / "out" / "deep").mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_bytes(b"left")
    assert local_copy(target, LocalCache(tmp_path / "cache")) == tmp_path / "out"
    publish(write(tmp_path / "b", {"weights.bin": b"new"}), target)
    assert read(local_copy(target, LocalCache(tmp_path / "cache"))) == {"weights.bin": b"new"}


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_what_a_publication_left_that_was_killed_after_its_commit_is_removed_and_nothing_else(tmp_path, scheme):
    target = join(f"{scheme}{tmp_path}", "out")
    marker = publish(write(tmp_path / "a", TREE), target)
    system, root = file_system(target)
    published = set(system.find(root))
    for name in (INTENT, f".{INTENT}.x1y2", f".{MARKER}.x1y2"):
        write_text(join(target, name), "left")
    remove_leftovers(target)
    assert set(system.find(root)) == published
    assert committed(target) == marker
