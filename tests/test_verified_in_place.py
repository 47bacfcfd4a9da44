"""A folder that is used in place is verified once per machine, by one of the processes that ask for it."""

import logging
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edlm.local_cache import LocalCache
from tests.test_local_cache import ContentSource


@pytest.fixture
def cache(tmp_path) -> LocalCache:
    return LocalCache(tmp_path / "cache")


@pytest.fixture
def in_place(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    ContentSource().copy_to(tmp_path / "data")
    return tmp_path / "data"


def test_a_folder_used_in_place_is_read_once_and_again_after_a_change(cache, in_place):
    source = ContentSource()
    for _ in range(3):
        cache.require(in_place, source.digest, source.check)
    assert source.checks == 1
    (in_place / "file").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            cache.require(in_place, source.digest, source.check)
    assert not cache.require(in_place, "another", lambda _: None)


CHECKER = """
    import sys, time
    from pathlib import Path
    from edlm.local_cache import LocalCache
    from tests.test_local_cache import ContentSource
    source = ContentSource()

    def check(folder):
        print("checks", flush=True)
        time.sleep(float(sys.argv[3]))
        source.check(folder)

    print("ready", flush=True)
    sys.stdin.readline()
    LocalCache(Path(sys.argv[1])).require(Path(sys.argv[2]), source.digest, check)
    print("ends", flush=True)
"""


def checker(cache: LocalCache, folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that is ready to require the folder, in which a check takes these seconds."""
    command = [sys.executable, "-c", textwrap.dedent(CHECKER), str(cache.folder), str(folder), str(seconds)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def together(cache: LocalCache, folder: Path) -> list[tuple[str, str]]:
    """Output and errors of four processes that require the folder at the same time."""
    processes = [checker(cache, folder, 0.3) for _ in range(4)]
    for process in processes:
        begin(process)
    return [process.communicate() for process in processes]


def test_of_processes_that_start_together_one_checks_a_folder_used_in_place(cache, in_place):
    assert sorted(output for output, _ in together(cache, in_place)) == ["checks\nends\n", *["ends\n"] * 3]
    assert [path.suffix for path in (cache.folder / "verified").iterdir()] == [".json"]


def test_a_damaged_folder_used_in_place_is_an_error_in_each_process_that_waited(cache, in_place):
    (in_place / "file").write_bytes(b"damage!")
    for output, errors in together(cache, in_place):
        assert output == "checks\n"
        assert "ValueError: damaged" in errors
    assert not list((cache.folder / "verified").iterdir())


def test_a_killed_check_blocks_no_other_process(cache, in_place):
    with checker(cache, in_place, 600) as killed, checker(cache, in_place, 0) as waiting:
        begin(killed)
        assert killed.stdout is not None
        assert waiting.stdout is not None
        assert killed.stdout.readline() == "checks\n"
        begin(waiting)
        early, _, _ = select.select([waiting.stdout], [], [], 0.5)
        killed.kill()
        assert early == []
        assert waiting.communicate()[0] == "checks\nends\n"


def test_without_a_place_for_stamps_a_folder_is_read_each_time(in_place, tmp_path, caplog):
    source = ContentSource()
    (tmp_path / "file").write_text("in the place of a folder")
    caplog.set_level(logging.INFO)
    for _ in range(2):
        LocalCache(tmp_path / "file" / "cache").require(in_place, source.digest, source.check)
    assert source.checks == 2
    assert "is read again at each start" in caplog.text
