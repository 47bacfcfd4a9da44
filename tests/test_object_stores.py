"""Object stores of every kind, on real servers: what is saved there is read from there, and kept apart."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import edlm
from edlm.checkpoints.lease import LeaseHeld, leased
from edlm.checkpoints.snapshot_retention import Retention, retain, snapshot_folder, snapshots, sweep
from edlm.checkpoints.snapshot_writer import write_part
from edlm.checkpoints.state_slices import whole
from edlm.checkpoints.training_state import newest_snapshot, open_snapshot
from edlm.data.corpus_files import Files
from edlm.file_systems import file_system, require_answer
from edlm.local_cache import LocalCache
from edlm.local_copies import local_copy
from edlm.storage import StorageError, committed, join, publish, read_text, write_text
from tests.bundles import make_bundle
from tests.s3_server import BUCKET, clients_of, moto_server, rclone_server
from tests.snapshots import parts_of, saved
from tests.store_servers import azure_server, google_server


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    with moto_server(folder):
        yield f"s3://{BUCKET}"


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    with rclone_server(folder) as server, clients_of(server.endpoint):
        yield f"s3://{BUCKET}"


STORES = [moto, *(pytest.param(store, marks=pytest.mark.chaos) for store in (rclone, google_server, azure_server))]
UNCONDITIONAL = (rclone, google_server)


@pytest.fixture(scope="module", params=STORES)
def root(request, tmp_path_factory) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("store")) as root:
        yield root


@pytest.fixture
def uri(root: str) -> str:
    return f"{root}/{uuid.uuid4().hex}"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "weights").write_bytes(b"12345")
    (tmp_path / "source" / "deep" / "empty").write_bytes(b"")
    return tmp_path / "source"


def test_what_is_published_there_is_fetched_replaced_and_never_mixed_with_foreign_files(uri, folder, tmp_path):
    assert committed(uri) is None
    marker = publish(folder, uri, {"stage": "test"})
    assert committed(uri) == marker
    cache = LocalCache(tmp_path / "cache")
    assert (local_copy(uri, cache) / "weights").read_bytes() == b"12345"
    (folder / "weights").write_bytes(b"rclone")
    (folder / "deep" / "empty").unlink()
    publish(folder, uri)
    assert {path.name for path in local_copy(uri, cache).iterdir()} == {"weights", "_COMMITTED.json"}
    write_text(join(uri, "thesis.txt"), "ten years of work")
    with pytest.raises(StorageError, match=r"thesis\.txt"):
        publish(folder, uri)


def test_a_corpus_there_is_read(uri):
    write_text(join(uri, "b.txt"), "second")
    write_text(join(uri, "a.txt"), "first")
    assert [one.text for one in Files(paths=(f"{uri}/*.txt",)).documents()] == ["first", "second"]
    assert [one.text for one in Files(paths=(uri,)).documents()] == ["first", "second"]


def test_checkpoints_there_are_kept_resumed_from_and_swept(uri):
    state = {"weights": torch.arange(1000.0)}
    names = [saved(uri, state, workers=2, step=step) for step in (1, 2, 3)]
    retain(uri, names[-1], Retention(keep=2))
    write_part(join(uri, snapshot_folder(4, "killed")), 0, [whole("weights", state["weights"])])
    assert newest_snapshot(uri) == (names[2], 3)
    sweep(uri, "another")
    assert [join(uri, name) for name in snapshots(uri)] == names[1:]


def test_a_checkpoint_that_lacks_a_part_is_passed_over(uri):
    state = {"weights": torch.arange(1000.0)}
    first, second = (saved(uri, state, workers=2, step=step) for step in (1, 2))
    system, path = file_system(join(second, "part-00001.safetensors"))
    system.rm_file(path)
    assert newest_snapshot(uri) == (first, 1)


def test_a_rank_reads_its_own_slices_of_a_checkpoint(uri):
    state = {name: torch.randn(20_007) for name in ("master", "mean", "variance")}
    snapshot = saved(uri, state, workers=3)
    mine = parts_of({name: torch.zeros_like(tensor) for name, tensor in state.items()}, workers=4)[1]
    open_snapshot(snapshot).fill(mine)
    for one in mine:
        assert torch.equal(one.values, state[one.name][one.offset : one.stop])


def test_of_two_who_create_a_file_one_does_where_the_store_knows_conditions(uri, request):
    if request.node.callspec.params["root"] in UNCONDITIONAL:
        pytest.skip("this server ignores the condition, which the real store does not")
    system, path = file_system(join(uri, "deep", "lease"))
    system.pipe_file(path, b"first", mode="create")
    with pytest.raises(FileExistsError):
        system.pipe_file(path, b"second", mode="create")
    assert read_text(join(uri, "deep", "lease")) == "first"


def test_a_workspace_there_is_leased_once(uri):
    with leased(uri), pytest.raises(LeaseHeld, match="is written by process"), leased(uri):
        pass
    with leased(uri):
        pass


def test_a_bundle_there_is_loaded(uri, tmp_path):
    require_answer(uri)
    bundle = make_bundle(tmp_path)
    publish(bundle, uri)
    text = edlm.load(bundle).generate("ab", seed=1).text
    assert edlm.load(uri, cache=tmp_path / "mine").generate("ab", seed=1).text == text
