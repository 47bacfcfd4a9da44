"""An S3 store end to end, on a real server: what is saved there is read from there, and its faults are said."""

import socket
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
import torch

import edlm
from cluster.serving.model_cache import cached_model
from cluster.tracking.model_version import ModelVersion
from edlm import s3_store
from edlm.checkpoints.lease import LeaseHeld, leased
from edlm.checkpoints.snapshot_retention import snapshot_folder
from edlm.checkpoints.snapshot_writer import SnapshotWriter, write_part
from edlm.checkpoints.state_slices import whole
from edlm.checkpoints.training_state import newest_snapshot, open_snapshot
from edlm.file_systems import require_answer
from edlm.inference.generator import open_bundle
from edlm.local_cache import LocalCache
from edlm.storage import committed, join, publish, read_text, write_text
from edlm.storage_errors import StoreRefusal, StoreUnavailable
from tests.bundles import make_bundle
from tests.faulty_proxy import FaultyProxy, ProxyFault
from tests.s3_server import BUCKET, S3Server, clients_of, free_port, moto_server, rclone_server
from tests.snapshots import parts_of, saved

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
WRONG_KEY = b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key.</Message></Error>"
SERVERS = {"moto": moto_server, "rclone": rclone_server}


@pytest.fixture(scope="module", params=["moto", pytest.param("rclone", marks=pytest.mark.chaos)])
def server(request, tmp_path_factory) -> Iterator[S3Server]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[FaultyProxy]:
    """A proxy before the server, which the clients of the test ask."""
    monkeypatch.setattr(s3_store, "FIRST_PAUSE", 0.05)
    with FaultyProxy(server.endpoint) as proxy, clients_of(proxy.uri):
        yield proxy


@pytest.fixture
def uri(proxy: FaultyProxy) -> str:
    assert proxy.uri, "which the clients ask"
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def test_a_bundle_there_is_loaded_by_edlm_and_by_a_replica_and_then_needs_no_store(uri, tmp_path, proxy):
    bundle = make_bundle(tmp_path)
    text = edlm.load(bundle).generate("ab", seed=1).text
    version = ModelVersion("1", uri, publish(bundle, uri).digest)
    assert edlm.load(uri, cache=tmp_path / "mine").generate("ab", seed=1).text == text
    cache = LocalCache(tmp_path / "replica")
    for _ in range(2):
        with cached_model(version, cache, [f"s3://{BUCKET}"]) as folder:
            assert open_bundle(folder).bundle.name == "tiny"
        proxy.fault = lambda *_: ProxyFault(status=503, content=SLOW_DOWN)


def test_a_rank_reads_its_own_slices_of_a_checkpoint_and_hardly_more(uri, proxy):
    state = {name: torch.randn(2**20 + 7) for name in ("master", "mean", "variance")}
    snapshot = saved(uri, state, workers=3)
    proxy.carried.clear()
    empty = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    mine = parts_of(empty, workers=4)[1]
    open_snapshot(snapshot).fill(mine)
    for one in mine:
        assert torch.equal(one.values, state[one.name][one.offset : one.stop])
    read = sum(answer for *_, answer in proxy.carried)
    assert read <= 1.1 * sum(one.values.nbytes for one in mine)


def test_a_large_part_is_uploaded_in_parts(uri, proxy):
    count = (s3_store.PART_BYTES + 2**20) // 4
    write_part(join(uri, snapshot_folder(1, "test")), 0, [whole("weights", torch.ones(count))])
    parts = [path for method, path, *_ in proxy.carried if method == "PUT" and "partNumber=" in path]
    assert len(parts) == 2


def test_a_workspace_there_is_leased_once_even_if_an_answer_is_lost(uri, proxy):
    lost: list[str] = []

    def fault(method: str, path: str, _size: int) -> ProxyFault | None:
        if method == "PUT" and "/lease/" in path and not lost:
            lost.append(path)
            return ProxyFault(lost=True)
        return None

    proxy.fault = fault
    with leased(uri):
        with pytest.raises(LeaseHeld, match="is written by process"), leased(uri):
            pass
        assert len(lost) == 1
    with leased(uri):
        pass


def test_a_busy_store_is_asked_again_and_the_log_says_so(uri, proxy, caplog):
    refused: list[str] = []

    def fault(_method: str, path: str, _size: int) -> ProxyFault | None:
        if len(refused) < 3:
            refused.append(path)
            return ProxyFault(status=503, content=SLOW_DOWN)
        return None

    proxy.fault = fault
    write_text(join(uri, "text"), "arrived")
    proxy.fault = lambda *_: None
    assert read_text(join(uri, "text")) == "arrived"
    lines = [line for line in caplog.messages if "next attempt in" in line]
    assert len(lines) == 3
    assert f"{uri}/text" in lines[0]
    assert "reduce your request rate" in lines[0]
    assert f"{uri}/text answers again" in caplog.messages


def test_a_store_that_stays_away_is_named_with_its_address(proxy):
    proxy.fault = lambda *_: ProxyFault(status=503, content=SLOW_DOWN)
    with pytest.raises(StoreUnavailable, match=rf"s3://{BUCKET}/x cannot be reached at {proxy.uri} .*AWS_END"):
        require_answer(f"s3://{BUCKET}/x")


def test_refused_credentials_are_said_at_once(proxy, caplog):
    proxy.fault = lambda *_: ProxyFault(status=403, content=WRONG_KEY)
    with pytest.raises(StoreRefusal, match=r"refuses this access \(InvalidAccessKeyId\); check AWS_ACCESS"):
        require_answer(f"s3://{BUCKET}/x")
    assert "next attempt" not in caplog.text


def test_missing_credentials_are_said_at_once(proxy):
    with clients_of(proxy.uri) as environment:
        environment.delenv("AWS_ACCESS_KEY_ID")
        environment.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(StoreRefusal, match=r"there are no credentials .* set AWS_ACCESS_KEY_ID"):
            committed(f"s3://{BUCKET}/x")


@pytest.mark.usefixtures("proxy")
def test_a_missing_bucket_is_named_when_it_is_asked_for_and_when_it_is_written_to():
    for call in (require_answer, lambda uri: write_text(join(uri, "a"), "b")):
        with pytest.raises(StoreRefusal, match=r"the bucket nowhere does not exist at .*; create it"):
            call("s3://nowhere/x")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_host_that_is_not_there_is_said_within_seconds(host):
    with clients_of(f"http://{host}:{free_port()}"):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"cannot be reached at http://{host}"):
            edlm.load(f"s3://{BUCKET}/x")
        assert time.monotonic() - started < 30


def test_a_checkpoint_waits_for_a_store_that_is_away(uri, proxy, caplog):
    """It refuses connections, and then is back on the same port."""
    port, state = free_port(), {"weights": torch.arange(1000.0)}
    with clients_of(f"http://127.0.0.1:{port}"):
        writer = SnapshotWriter(uri, "test")
        writer.save([whole("weights", state["weights"])], 5)
        while "next attempt" not in caplog.text:
            time.sleep(0.01)
        forward = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=_forward, args=(forward, proxy.uri), daemon=True).start()
        writer.wait()
        assert newest_snapshot(uri) == (join(uri, snapshot_folder(5, "test")), 5)
        forward.close()


def _forward(listening: socket.socket, target: str) -> None:
    """Carry bytes between the connections to a socket and those to a server."""
    host, _, port = target.removeprefix("http://").partition(":")

    def carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other end is closed

    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        server = socket.create_connection((host, int(port)))
        for ends in ((client, server), (server, client)):
            threading.Thread(target=carry, args=ends, daemon=True).start()
