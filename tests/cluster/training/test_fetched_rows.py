"""Rows that workers fetch from a store, because a copy would exceed the cache, give the same training."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from cluster.config import Cluster, Zero
from cluster.runtime.ray_connection import connect
from cluster.training.outcomes import TrainingFailed
from cluster.training.workers import train
from edlm.config import parse
from edlm.data.preparation import Data, prepare
from edlm.file_systems import file_system
from edlm.storage import publish
from tests.cluster.training.test_workers import SETTINGS, curve, task
from tests.paths import PROJECT
from tests.s3_server import BUCKET, S3Server, moto_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
TWO = Cluster(workers=2, zero=Zero(stage=2), restarts=2)
LIMIT_GB = "0.00001"  # 10 kB, less than the split has


@dataclass(frozen=True)
class Stored:
    """Prepared data on a disk and in a store, and the weights that a training on the disk's gives."""

    server: S3Server
    local: Path
    uri: str
    workspace: Path
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[Stored]:
    folder, uri = tmp_path_factory.mktemp("fetched"), f"s3://{BUCKET}/data"
    corpus = {"kind": "embedded"}
    settings = {"corpus": corpus, "tokenizer": {"kind": "characters"}, "length": 6, "shares": {"validation": 0.1}}
    with pytest.MonkeyPatch.context() as patch, moto_server(folder) as server:
        patch.setenv("PYTHONPATH", str(PROJECT))  # workers import the tests
        patch.setenv("EDLM_CACHE", str(folder / "cache"))
        patch.setenv("EDLM_CACHE_GB", LIMIT_GB)
        prepare(parse(Data, settings), folder / "data", lambda _: None)
        publish(folder / "data", str(folder / "data"))
        publish(folder / "data", uri)
        with connect(TWO):
            local = folder / "data"
            yield Stored(server, local, uri, folder / "local", train(task(str(local), folder / "local"), TWO))


def same(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_split_that_the_cache_has_no_room_for_is_read_where_it_is(stored, tmp_path, capsys):
    weights = train(task(stored.uri, tmp_path), TWO)
    time.sleep(1)  # until the last lines are printed
    expected = f"[toy] fetches rows from {stored.uri} as they are needed, without a copy of the train split"
    assert expected in capsys.readouterr().out
    assert same(weights, stored.weights)
    assert curve(tmp_path) == curve(stored.workspace)
    copied = {path.name for path in Path(os.environ["EDLM_CACHE"]).rglob("*.bin")}
    assert copied == {"train.digests.bin"}


def test_a_damaged_block_ends_training_with_its_place(stored, tmp_path):
    system, path = file_system(f"s3://{BUCKET}/damaged")
    publish(stored.local, f"s3://{BUCKET}/damaged")
    content = (stored.local / "train.bin").read_bytes()
    system.pipe_file(f"{path}/train.bin", content[:5] + bytes([content[5] ^ 1]) + content[6:])
    with pytest.raises(TrainingFailed, match=r"StorageError: .*/train\.bin: bytes 0 to [\d,]+ have SHA-256"):
        train(task(f"s3://{BUCKET}/damaged", tmp_path), replace(TWO, restarts=0))


@pytest.mark.chaos
def test_a_store_that_is_frozen_for_ten_seconds_is_waited_for(stored, tmp_path):
    longer = replace(SETTINGS, steps=400, checkpoint_every=200)
    expected = train(task(str(stored.local), tmp_path / "undisturbed", training=longer), TWO)
    disturbed = tmp_path / "disturbed"
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, task(stored.uri, disturbed, training=longer), TWO)
        while not ((disturbed / "curve.jsonl").exists() and curve(disturbed)):
            assert not training.done(), training.result()
            time.sleep(0.1)
        stored.server.signal(signal.SIGSTOP)
        time.sleep(10)
        frozen_at = len(curve(disturbed))
        stored.server.signal(signal.SIGCONT)
        weights = training.result()
    assert frozen_at < longer.steps, "it had ended before"
    assert same(weights, expected)
    assert curve(disturbed) == curve(tmp_path / "undisturbed")
