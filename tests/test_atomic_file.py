"""A file is replaced whole, and what a killed process leaves of its write goes with the next write."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edlm.atomic_file import put, replacing

WRITE = """
import sys
from pathlib import Path
from edlm.atomic_file import replacing
with replacing(Path(sys.argv[1])) as new:
    new.write_text("half")
    print(new, flush=True)
    input()
"""


def writing(target: Path) -> tuple[subprocess.Popen, Path]:
    """A process in the middle of a write, and its unfinished file."""
    command = [sys.executable, "-c", WRITE, str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_next_write_to_a_folder_removes_what_killed_processes_left_there_and_nothing_else(tmp_path):
    target = tmp_path / "lease.json"
    (killed, left), (other, left_too), (process, held) = map(writing, (target, tmp_path / "other.json", target))
    for one in (killed, other):
        one.send_signal(signal.SIGKILL)
        one.communicate()
    (tmp_path / ".lease.json.own").write_text("a file of the user's")
    with replacing(target) as new:
        new.write_text("whole")
        assert held.read_text() == "half", "a file that is being written"
        assert not left.exists()
        assert not left_too.exists()
    assert {path.name for path in tmp_path.iterdir()} == {target.name, held.name, ".lease.json.own"}
    process.communicate("\n")
    assert process.returncode == 0
    assert target.read_text() == "half", "of the writer that ends last"
    assert not held.exists()


def test_after_an_error_the_old_content_stays_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(target) as new:
        new.rename(tmp_path / "elsewhere")
    assert target.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "elsewhere"}


def test_a_file_that_is_put_takes_the_place_of_the_old_one_without_a_look_at_the_folder(tmp_path, monkeypatch):
    target = tmp_path / "new" / "a.shard"

    def never(*_: object) -> None:
        raise AssertionError("with very many files in the folder, this takes longer than their content")

    for name in ("scandir", "listdir", "fsync"):
        monkeypatch.setattr(os, name, never)
    for content in (b"old", b"new"):
        put(target, content)
        assert target.read_bytes() == content
        assert target.stat().st_mode & 0o777 == 0o644
    monkeypatch.undo()
    assert [path.name for path in target.parent.iterdir()] == ["a.shard"]


def test_a_put_that_fails_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "a.shard").mkdir()
    with pytest.raises(IsADirectoryError):
        put(tmp_path / "a.shard", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["a.shard"]
