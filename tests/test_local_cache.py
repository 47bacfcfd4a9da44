"""A cache is private and of limited size; its copies are read once, shared by processes and never evicted in use."""

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edlm.config import ConfigurationError
from edlm.local_cache import FOLDER_VARIABLE, LIMIT_VARIABLE, LocalCache, default_cache


class ContentSource:
    """Content of one file, which counts how often it is copied and read."""

    def __init__(self, content: bytes = b"content", size: int | None = None) -> None:
        self.content = content
        self.bytes = len(content) if size is None else size
        self.copies = self.checks = 0

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def copy_to(self, folder: Path) -> None:
        self.copies += 1
        (folder / "file").write_bytes(self.content)

    def check(self, folder: Path) -> None:
        self.checks += 1
        if (folder / "file").read_bytes() != self.content:
            raise ValueError("damaged")


@pytest.fixture
def cache(tmp_path) -> LocalCache:
    return LocalCache(tmp_path / "cache")


def used(cache: LocalCache, source: ContentSource) -> bytes:
    with cache.entry(source.digest, source) as folder:
        return (folder / "file").read_bytes()


def held(cache: LocalCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.is_dir() and len(path.name) == 64}


def test_what_is_there_is_neither_copied_nor_read_again(cache):
    source = ContentSource()
    assert [used(cache, source) for _ in range(3)] == [source.content] * 3
    assert (source.copies, source.checks) == (1, 1)


def test_a_changed_copy_is_read_again_and_replaced_if_it_is_damaged(cache):
    source = ContentSource()
    used(cache, source)
    file = cache.folder / source.digest / "file"
    os.utime(file)
    used(cache, source)
    assert (source.copies, source.checks) == (1, 2)
    file.write_bytes(b"damaged")  # of the same length
    assert used(cache, source) == source.content
    assert source.copies == 2


def test_a_copy_that_this_process_holds_is_replaced_if_it_is_damaged(cache):
    source = ContentSource()
    (cache.hold(source.digest, source) / "file").write_bytes(b"damaged")
    assert (cache.hold(source.digest, source) / "file").read_bytes() == source.content


def test_a_lost_or_torn_stamp_costs_a_second_reading(cache):
    source = ContentSource()
    used(cache, source)
    for damage in (lambda stamp: stamp.unlink(), lambda stamp: stamp.write_text("[[")):
        damage(cache.folder / f"{source.digest}.json")
        used(cache, source)
    assert (source.copies, source.checks) == (1, 3)


def test_a_source_that_fails_leaves_nothing(cache):
    source = ContentSource()
    source.check = lambda _: (_ for _ in ()).throw(ValueError("not what was published"))
    with pytest.raises(ValueError, match="not what was published"):
        used(cache, source)
    assert [path.name for path in cache.folder.iterdir()] == [f"{source.digest}.lock"]


def test_the_least_recently_used_go_first(tmp_path):
    cache = LocalCache(tmp_path / "cache", limit_bytes=3000)
    sources = [ContentSource(bytes([number]) * 1000) for number in range(4)]
    for age, source in enumerate(sources[:3]):
        used(cache, source)
        os.utime(cache.folder / f"{source.digest}.json", (age, age))
    used(cache, sources[0])
    used(cache, sources[3])
    assert held(cache) == {sources[0].digest, sources[2].digest, sources[3].digest}


def test_an_entry_in_use_is_not_evicted_though_the_limit_is_exceeded(tmp_path, caplog):
    cache = LocalCache(tmp_path / "cache", limit_bytes=1500)
    first, second = ContentSource(b"1" * 1000), ContentSource(b"2" * 1000)
    with cache.entry(first.digest, first):
        used(cache, second)
        assert held(cache) == {first.digest, second.digest}
        assert f"more than its limit of 1.5e-06 ({LIMIT_VARIABLE})" in caplog.text
    third = ContentSource(b"3" * 1000)
    used(cache, third)
    assert held(cache) == {third.digest}


HOLDER = """
    import sys
    from pathlib import Path
    from edlm.local_cache import LocalCache
    from tests.test_local_cache import ContentSource
    source = ContentSource(b"1" * 1000)
    LocalCache(Path(sys.argv[1])).hold(source.digest, source)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_holds_is_not_evicted_until_it_is_killed(tmp_path):
    cache, other = LocalCache(tmp_path / "cache", limit_bytes=1500), ContentSource(b"1" * 1000)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(cache.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        second = ContentSource(b"2" * 1000)
        used(cache, second)
        assert other.digest in held(cache)
        process.kill()
    third = ContentSource(b"3" * 1000)
    used(cache, third)
    assert held(cache) == {third.digest}


MAKER = """
    import sys, time
    from pathlib import Path
    from edlm.local_cache import LocalCache
    from tests.test_local_cache import ContentSource

    class EndlessSource(ContentSource):
        def copy_to(self, folder):
            super().copy_to(folder)
            print("half", flush=True)
            time.sleep(600)

    source = EndlessSource(b"1" * 1000)
    LocalCache(Path(sys.argv[1])).hold(source.digest, source)
"""


def test_a_copy_whose_process_was_killed_is_removed_by_the_next_use_of_the_cache_and_not_before(cache):
    source, half = ContentSource(), ContentSource(b"1" * 1000)
    used(cache, source)
    command = [sys.executable, "-c", textwrap.dedent(MAKER), str(cache.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        used(cache, source)
        assert (cache.folder / f"{half.digest}.partial" / "file").exists()
        process.kill()
    used(cache, source)
    assert {path.name.partition(".")[0] for path in cache.folder.iterdir()} == {source.digest}


def test_many_that_want_one_entry_copy_it_once(cache):
    class SlowSource(ContentSource):
        def copy_to(self, folder: Path) -> None:
            super().copy_to(folder)
            time.sleep(0.05)

    source = SlowSource()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: used(cache, source), range(32))) == [source.content] * 32
    assert source.copies == 1


def test_entries_are_used_and_evicted_at_the_same_time(tmp_path):
    cache = LocalCache(tmp_path / "cache", limit_bytes=2500)
    sources = [ContentSource(bytes([number]) * 1000) for number in range(5)]
    with ThreadPoolExecutor(8) as threads:
        contents = list(threads.map(lambda i: used(cache, sources[i % 5]), range(200)))
    assert contents == [sources[i % 5].content for i in range(200)]


def test_what_a_killed_process_left_half_made_is_removed(cache):
    source, other = ContentSource(), ContentSource(b"other")
    for digest in (source.digest, other.digest):
        (cache.folder / f"{digest}.partial").mkdir(parents=True)
        (cache.folder / f"{digest}.partial" / "half").write_bytes(b"x" * 100)
    cache.folder.chmod(0o700)
    used(LocalCache(cache.folder, limit_bytes=50), source)
    assert not list(cache.folder.glob("*.partial"))


def test_a_full_disk_is_said_and_leaves_nothing(cache):
    source = ContentSource(size=3_000_000_000)
    source.copy_to = lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ConfigurationError, match=f"has no room for 3 GB .No space left.*{FOLDER_VARIABLE}"):
        used(cache, source)
    assert held(cache) == set()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o1777])
def test_a_folder_that_other_users_can_access_is_refused(cache, mode):
    cache.folder.mkdir()
    cache.folder.chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"{cache.folder} has mode {mode:o}.*chmod 700 {cache.folder}"):
        used(cache, ContentSource())
    cache.folder.chmod(0o700)
    used(cache, ContentSource())


def test_a_folder_of_another_user_is_refused(tmp_path):
    others = Path("/")
    if os.getuid() == 0:
        others = tmp_path
        os.chown(others, 12345, -1)
    with pytest.raises(ConfigurationError, match=rf"{others} belongs to user \d+, but this process runs as user"):
        used(LocalCache(others), ContentSource())


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"EDLM_CACHE": "/fast/cache", "EDLM_HOME": "/runs"}, "/fast/cache"),
        ({"EDLM_HOME": "/runs"}, "/runs/cache"),
        ({"EDLM_HOME": "file:///runs"}, "/runs/cache"),
        ({"EDLM_HOME": "s3://bucket", "XDG_CACHE_HOME": "/caches"}, "/caches/edlm"),
        ({"HOME": "/home/me"}, "/home/me/.cache/edlm"),
    ],
)
def test_the_folder_is_the_one_of_the_environment_and_never_the_temporary_one(monkeypatch, environment, folder):
    for name in ("EDLM_CACHE", "EDLM_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache().folder == Path(folder)


@pytest.mark.parametrize("limit", ["0", "-1", "much", "nan"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch, limit):
    monkeypatch.setenv(LIMIT_VARIABLE, limit)
    with pytest.raises(ConfigurationError, match=rf"{LIMIT_VARIABLE}: '{limit}' is not a number of gigabytes above 0"):
        default_cache()
    monkeypatch.setenv(LIMIT_VARIABLE, "2.5")
    assert default_cache().limit_bytes == 2.5e9


def test_one_that_waits_for_another_says_so(cache, caplog):
    source, began = ContentSource(), threading.Event()

    class WaitingSource(ContentSource):
        def copy_to(self, folder: Path) -> None:
            began.set()
            time.sleep(0.3)
            super().copy_to(folder)

    thread = threading.Thread(target=lambda: used(cache, WaitingSource()))
    thread.start()
    began.wait()
    cache._make(source.digest, source)
    thread.join()
    assert source.copies == 0
    assert "waiting for a process that makes or uses" in caplog.text
