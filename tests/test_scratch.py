"""A scratch folder is gone when its work ends, also where a process was killed in it."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edlm.scratch import scratch

WORK = """
import sys
from pathlib import Path
from edlm.scratch import scratch
with scratch(Path(sys.argv[1]), "edlm-stage-") as folder:
    (folder / "output").mkdir()
    (folder / "output" / "train.bin").write_text("half")
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path):
    return tmp_path


def working(parent):
    """A process that works in a folder of its own, and the folder."""
    command = [sys.executable, "-c", WORK, str(parent)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_works_in_stays(temporary):
    (killed, dead), (process, living) = working(temporary), working(temporary)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert (dead / "output" / "train.bin").exists()
    (temporary / "edlm-stage-of-another").mkdir()
    (temporary / "edlm-stage-of-another" / "file").write_text("of no scratch folder")
    with scratch(temporary, "edlm-stage-") as folder:
        assert set(temporary.iterdir()) == {living, folder, temporary / "edlm-stage-of-another"}
        assert (living / "output" / "train.bin").read_text() == "half"
    process.communicate("\n")
    assert process.returncode == 0
    assert list(temporary.iterdir()) == [temporary / "edlm-stage-of-another"]


@pytest.mark.parametrize("files", [[], [".held"], [".held", "half"]], ids=["made", "not locked", "half removed"])
def test_a_folder_of_a_process_that_was_killed_at_either_end_of_its_work_is_removed(temporary, files):
    folder = temporary / "edlm-stage-prepare-killed"
    folder.mkdir()
    for file in files:
        (folder / file).write_text("")
    with scratch(temporary, "edlm-stage-") as mine:
        assert list(temporary.iterdir()) == [mine]


def test_the_lock_goes_last_so_that_a_sweep_finds_what_a_killed_removal_left(temporary, monkeypatch):
    class KilledCleanup(BaseException):
        pass

    def killed(_path):
        raise KilledCleanup

    work = scratch(temporary, "edlm-stage-")
    folder = work.__enter__()
    (folder / "output").mkdir()
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KilledCleanup):
        work.__exit__(None, None, None)
    monkeypatch.undo()
    assert (folder / ".held").exists()
    with scratch(temporary, "edlm-stage-") as mine:
        assert list(temporary.iterdir()) == [mine]


@pytest.mark.parametrize("when", ["before the lock is there", "before it is locked"])
def test_a_folder_that_a_sweep_takes_before_it_is_locked_is_made_again(temporary, monkeypatch, when):
    taken = []
    module, name = (tempfile, "mkdtemp") if when == "before the lock is there" else (fcntl, "flock")
    original = getattr(module, name)

    def swept(*args, **kwargs):
        result = original(*args, **kwargs)
        if not taken:
            taken.extend(temporary.iterdir())
            shutil.rmtree(taken[0])
        return result

    monkeypatch.setattr(module, name, swept)
    with scratch(temporary, "edlm-stage-") as folder:
        assert folder.is_dir()
        assert taken
        assert folder not in taken
        assert (folder / ".held").exists()
    assert list(temporary.iterdir()) == []


def test_what_a_process_still_writes_to_is_left_to_a_later_sweep(temporary, monkeypatch):
    folder = temporary / "edlm-stage-prepare-killed"
    (folder / "log").mkdir(parents=True)
    (folder / ".held").touch()
    monkeypatch.setattr(shutil, "rmtree", lambda path: Path(path).rmdir() if not (path / "new").touch() else None)
    with scratch(temporary, "edlm-stage-"):
        assert (folder / ".held").exists()
    monkeypatch.undo()
    with scratch(temporary, "edlm-stage-") as mine:
        assert list(temporary.iterdir()) == [mine]


def failing(temporary):
    with scratch(temporary, "edlm-stage-") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError("no space")


def test_a_work_that_fails_leaves_no_folder(temporary):
    with pytest.raises(RuntimeError, match="no space"):
        failing(temporary)
    assert list(temporary.iterdir()) == []


def test_a_sweep_takes_what_it_is_to_by_its_name_and_nothing_else(temporary):
    for name in ("edlm-stage-a", "edlm-stage-b", "edlm-ray-a"):
        (temporary / name).mkdir()
        (temporary / name / ".held").touch()
    with scratch(temporary, "edlm-stage-", swept=lambda name: name.endswith("a")) as mine:
        assert set(temporary.iterdir()) == {mine, temporary / "edlm-stage-b", temporary / "edlm-ray-a"}


def test_a_disk_without_locks_has_scratch_folders_and_no_sweep(temporary, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with scratch(temporary, "edlm-stage-") as first:
        with scratch(temporary, "edlm-stage-") as second:
            assert {first, second} == set(temporary.iterdir())
        assert first.is_dir()
