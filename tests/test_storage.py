"""A folder is either committed whole, or not at all; what is fetched is what was published, or an error."""

import json
import os
import shutil
import socket
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edlm import storage
from edlm.file_systems import file_system
from edlm.local_cache import LocalCache
from edlm.local_copies import local_copy
from edlm.storage import (
    INTENT,
    MARKER,
    File,
    Marker,
    StorageError,
    committed,
    discard,
    inventory,
    join,
    publish,
    read_text,
    write_text,
)

names = st.text("abcXY .-_%é", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(max_size=40), max_size=5
).filter(lambda tree: not any(b.startswith(a + "/") for a in tree for b in tree))


def write(folder: Path, tree: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {file.path: (folder / file.path).read_bytes() for file in inventory(folder)}


@pytest.fixture(params=["local", "file://", "memory://"])
def uri(request, tmp_path) -> str:
    """An empty uri to publish to, on each file system."""
    if request.param == "memory://":
        return f"memory://{uuid.uuid4().hex}/out"
    return ("file://" if request.param == "file://" else "") + str(tmp_path / "out")


TREE = {"weights.bin": b"\x00\x01\x02", "deep/er/notes.txt": b"hello", "empty": b""}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=trees, local=st.booleans())
def test_what_is_fetched_is_what_was_published(tmp_path, tree, local):
    source = write(tmp_path / "source", tree)
    uri = str(tmp_path / uuid.uuid4().hex) if local else f"memory://{uuid.uuid4().hex}"
    assert committed(uri) is None
    marker = publish(source, uri, {"fingerprint": "abc", "steps": 3})
    assert committed(uri) == marker
    assert marker.facts == {"fingerprint": "abc", "steps": 3}
    assert read(local_copy(uri, LocalCache(tmp_path / "cache"))) == tree


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(first=trees, second=trees)
def test_the_digest_is_that_of_the_content_and_the_names(tmp_path, first, second):
    digests = [Marker(files=inventory(write(tmp_path / "tree", tree))).digest for tree in (first, second)]
    assert (digests[0] == digests[1]) == (first == second)


def test_publishing_again_replaces_the_old_content(uri, tmp_path):
    publish(write(tmp_path / "a", TREE), uri)
    publish(write(tmp_path / "b", {"weights.bin": b"new"}), uri)
    assert read(local_copy(uri, LocalCache(tmp_path / "cache"))) == {"weights.bin": b"new"}
    system, root = fsspec.url_to_fs(uri)
    assert {path.rpartition("/")[2] for path in system.find(root)} == {"weights.bin", MARKER}


def test_a_local_folder_is_fetched_in_place_and_can_be_published_in_place(tmp_path):
    folder = write(tmp_path / "stage", TREE)
    publish(folder, str(folder))
    assert local_copy(str(folder), LocalCache(tmp_path / "cache")) == folder
    assert not list((tmp_path / "cache").glob("*.lock"))


def test_a_local_folder_is_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    """Thirty workers that start do not hash the corpus thirty times."""
    folder, cache, read_files = write(tmp_path / "stage", TREE), LocalCache(tmp_path / "cache"), []
    publish(folder, str(folder))
    real = storage.sha256
    monkeypatch.setattr(storage, "sha256", lambda path: (read_files.append(path.name), real(path))[1])
    for _ in range(3):
        local_copy(str(folder), cache)
    assert len(read_files) == len(TREE)
    (folder / "weights.bin").write_bytes(b"\x00\x01\x03")
    with pytest.raises(StorageError, match=r"weights\.bin"):
        local_copy(str(folder), cache)


def test_a_cached_copy_is_used_again_and_a_damaged_one_is_replaced(tmp_path, monkeypatch):
    uri = f"memory://{uuid.uuid4().hex}"
    publish(write(tmp_path / "source", TREE), uri)
    copy = local_copy(uri, LocalCache(tmp_path / "cache"))
    assert committed(str(copy)) == committed(uri)
    transfers = []
    real = MemoryFileSystem.get_file
    monkeypatch.setattr(
        MemoryFileSystem, "get_file", lambda self, *args, **kw: (transfers.append(args), real(self, *args, **kw))[1]
    )
    assert local_copy(uri, LocalCache(tmp_path / "cache")) == copy
    assert transfers == []
    (copy / "weights.bin").write_bytes(b"\x00\x01\x03")
    assert read(local_copy(uri, LocalCache(tmp_path / "cache"))) == TREE
    assert len(transfers) == len(TREE)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [copy.name]


class Killed(BaseException):
    """Stands for the process's death at a chosen operation: nothing after it runs."""


WRITES = {LocalFileSystem: ["put_file"], MemoryFileSystem: ["put_file", "pipe_file", "rm_file"]}


@pytest.mark.parametrize("republished", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("system", [LocalFileSystem, MemoryFileSystem])
def test_killed_at_any_write_it_is_not_committed_and_publishing_again_succeeds(
    tmp_path, monkeypatch, system, republished
):
    """Every operation that changes the uri is made the last one, in turn."""
    source = write(tmp_path / "source", TREE)
    for survivors in range(100):
        uri = f"memory://{uuid.uuid4().hex}" if system is MemoryFileSystem else str(tmp_path / f"out{survivors}")
        if republished:
            publish(write(tmp_path / "older", {"weights.bin": b"old", "stale": b"x"}), uri)
        with monkeypatch.context() as patch:
            calls = _kill_after(patch, survivors, system)
            try:
                publish(source, uri)
            except Killed:
                pass
            else:
                assert len(calls) >= len(TREE) + 2
                return
        marker = committed(uri)
        if marker is not None:  # whatever is committed must be whole: the old folder, or the new one
            assert read(local_copy(uri, LocalCache(tmp_path / "cache"))) in (
                TREE,
                {"weights.bin": b"old", "stale": b"x"},
            )
        publish(source, uri)
        assert read(local_copy(uri, LocalCache(tmp_path / "cache"))) == TREE


def _kill_after(patch: pytest.MonkeyPatch, survivors: int, system: type) -> list[str]:
    calls: list[str] = []

    def guarded(name, real):
        def call(*args, **kwargs):
            if len(calls) == survivors:
                raise Killed
            calls.append(name)
            return real(*args, **kwargs)

        return call

    for name in WRITES[system]:
        patch.setattr(system, name, guarded(name, getattr(system, name)))
    if system is LocalFileSystem:
        patch.setattr(os, "replace", guarded("replace", os.replace))
        patch.setattr(system, "rm_file", guarded("rm_file", system.rm_file))
    return calls


DAMAGE = {
    "missing": (lambda f: (f / "weights.bin").unlink(), "'weights.bin' is missing, expected 3 bytes"),
    "truncated": (lambda f: (f / "weights.bin").write_bytes(b"\0"), "'weights.bin' has 1 bytes, expected 3"),
    "bit flip": (lambda f: (f / "weights.bin").write_bytes(b"\0\1\3"), "'weights.bin' has SHA-256 .* expected"),
    "extra": (lambda f: (f / "deep/alien").write_bytes(b"?"), "unexpected file 'deep/alien'"),
    "link": (lambda f: (f / "link").symlink_to("/etc/hostname"), "'link' is a symbolic link"),
    "replaced by a link": (lambda f: _relink(f / "empty"), "'empty' is a symbolic link"),
    "no marker": (lambda f: (f / MARKER).unlink(), "is not committed"),
    "torn marker": (lambda f: (f / MARKER).write_text('{"files": ['), "is damaged"),
    "binary marker": (lambda f: (f / MARKER).write_bytes(b"\xff\xfe\0"), "is damaged"),
    "nested marker": (lambda f: (f / MARKER).write_text("[" * 100_000), "is damaged"),
    "other marker": (lambda f: (f / MARKER).write_text('{"files": [], "more": 1}'), "more: unknown key"),
}


def _relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_with_the_name_of_the_file(tmp_path, kind):
    damage, message = DAMAGE[kind]
    folder = write(tmp_path / "folder", TREE)
    publish(folder, str(folder))
    damage(folder)
    with pytest.raises(ValueError, match=message):
        local_copy(str(folder), LocalCache(tmp_path / "cache"))


@pytest.mark.parametrize("content", [None, b"\0", b"\0\1\3"])
def test_damage_in_an_object_store_is_found_on_the_way_and_nothing_is_kept(tmp_path, content):
    uri = f"memory://{uuid.uuid4().hex}"
    publish(write(tmp_path / "source", TREE), uri)
    system, root = fsspec.url_to_fs(uri)
    system.rm_file(f"{root}/weights.bin")
    if content is not None:
        system.pipe_file(f"{root}/weights.bin", content)
    with pytest.raises(ValueError, match=r"weights\.bin"):
        local_copy(uri, LocalCache(tmp_path / "cache"))
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    "path", ["../out", "a/../../out", "/etc/passwd", "a//b", "./a", "", ".", "a\\..\\b", "a\0b", MARKER, INTENT, "a/"]
)
def test_a_marker_that_points_out_of_its_folder_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match="not a plain path"):
        File(path=path, bytes=0, sha256="0" * 64)
    tree = {"files": [{"path": path, "bytes": 0, "sha256": "0" * 64}], "facts": {}}
    uri = f"memory://{uuid.uuid4().hex}"
    write_text(join(uri, MARKER), json.dumps(tree))
    with pytest.raises(ValueError, match="not a plain path"):
        local_copy(uri, LocalCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_files_that_no_publication_wrote_are_never_deleted(uri, tmp_path):
    write_text(join(uri, "thesis.txt"), "ten years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        publish(write(tmp_path / "source", TREE), uri)
    assert read_text(join(uri, "thesis.txt")) == "ten years of work"


def test_a_link_is_not_published(tmp_path):
    folder = write(tmp_path / "source", TREE)
    (folder / "secret").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="symbolic link"):
        publish(folder, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_text_is_written_whole(uri):
    write_text(join(uri, "a", "b.txt"), "first")
    write_text(join(uri, "a", "b.txt"), "zweiter Text, ümlaut")
    assert read_text(join(uri, "a", "b.txt")) == "zweiter Text, ümlaut"
    with pytest.raises(FileNotFoundError):
        read_text(join(uri, "c.txt"))


def test_a_failed_write_leaves_the_old_text_and_no_scrap(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    write_text(str(target), "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_text(str(target), "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("uri", "parts", "expected"),
    [
        ("/a", ("b", "c"), "/a/b/c"),
        ("/a/", ("b/c/",), "/a/b/c"),
        ("/", ("a",), "/a"),
        ("memory://", ("a",), "memory://a"),
        ("s3://bucket/x", ("y",), "s3://bucket/x/y"),
    ],
)
def test_join_goes_down(uri, parts, expected):
    assert join(uri, *parts) == expected


@pytest.mark.parametrize("part", ["..", "a/../b", "/etc", "s3://other"])
def test_join_never_climbs(part):
    with pytest.raises(ValueError, match="does not stay below"):
        join("memory://a", part)


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gcs"), ("hf://a/b/x", "huggingface_hub", "models")],
)
def test_a_uri_whose_package_is_missing_states_which_extra_to_install(monkeypatch, uri, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # what an environment without it does
    monkeypatch.delitem(sys.modules, "edlm.s3_store", raising=False)
    with pytest.raises(StorageError, match=rf'{package}.*in a checkout .*, run pip install "\.\[{extra}\]"'):
        committed(uri)


def test_an_unknown_scheme_is_named():
    with pytest.raises(
        StorageError, match="nowhere:// cannot be read: Protocol not known: nowhere; give a path, or a URI"
    ):
        committed("nowhere://a/b")


def test_a_hub_that_does_not_answer_is_no_missing_file(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"hf://a/b/c: the Hugging Face hub at http://127.* does not answer"):
            file_system("hf://a/b/c")


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_a_folder_that_is_discarded_is_gone_with_all_that_is_in_it_and_none_need_be_there(tmp_path, scheme):
    uri = join(f"{scheme}{tmp_path}", "records")
    discard(uri)
    write_text(join(uri, "deep", "file"), "x")
    write_text(join(uri, "other"), "y")
    discard(uri)
    system, path = file_system(uri)
    assert not system.exists(path)
