"""Training on real Ray Train workers: it ends, is not repeated, survives a killed worker, and its errors are clear."""

import functools
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch

from cluster.config import Cluster, Zero
from cluster.runtime.ray_connection import connect
from cluster.training.result import training_facts
from cluster.training.workers import TrainingTask, train
from edlm.checkpoints import lease as leases
from edlm.checkpoints.lease import Lease, LeaseLost
from edlm.checkpoints.snapshot_retention import committed_at, snapshots, step_of
from edlm.checkpoints.training_state import newest_snapshot
from edlm.config import ConfigurationError, parse
from edlm.data.preparation import Data, prepare
from edlm.storage import StorageError, publish, write_text
from edlm.training.interfaces import NonFiniteLoss
from edlm.training.settings import Training
from edlm.training.step_clock import METRICS
from tests.cluster.listening import beyond_loopback
from tests.cluster.training.objectives import FileTracker, toy_objective
from tests.paths import PROJECT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

TWO = Cluster(workers=2, zero=Zero(stage=2), restarts=2)
SETTINGS = Training(steps=12, batch=8, learning_rate=1e-2, checkpoint_every=4, log_every=4, ema=0.9, clip=0.5)


@pytest.fixture(scope="module")
def ray():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(PROJECT)  # workers import the tests
    with connect(TWO):
        yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    settings = {
        "corpus": {"kind": "embedded"},
        "tokenizer": {"kind": "characters"},
        "length": 6,
        "shares": {"validation": 0.1, "judge": 0.0},
    }
    prepare(parse(Data, settings), folder, lambda _: None)
    publish(folder, str(folder))
    return str(folder)


def task(data: str, workspace: Path, **changes) -> TrainingTask:
    workspace.mkdir(exist_ok=True)
    plain = TrainingTask(
        name="toy",
        objective=functools.partial(toy_objective, None),
        data=data,
        split="train",
        length=6,
        training=SETTINGS,
        seed=0,
        workspace=str(workspace),
        tracker=functools.partial(FileTracker, str(workspace / "curve.jsonl")),
    )
    return replace(plain, **changes)


def curve(workspace: Path) -> dict[int, float]:
    """The loss of each step, as it was told last."""
    lines = (workspace / "curve.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss_nats_per_token"] for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def trained_and_seen(ray, data, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor], set[tuple[int, int]]]:  # noqa: ARG001
    """A training without interruption: its workspace, its weights, and what listened beyond loopback meanwhile."""
    workspace = tmp_path_factory.mktemp("whole")
    with beyond_loopback() as seen:
        weights = dict(train(task(data, workspace), TWO))  # now: what is compared with them later is read later
    return workspace, weights, seen


@pytest.fixture(scope="module")
def uninterrupted(trained_and_seen) -> tuple[Path, dict[str, torch.Tensor]]:
    return trained_and_seen[:2]


def test_while_workers_train_only_the_store_of_their_group_listens_beyond_loopback(trained_and_seen):
    _, _, seen = trained_and_seen
    ports = {port for _, port in seen}  # a child that is being forked has its parent's socket for a moment
    assert len(ports) == 1, "TCPStore of torch.distributed, of one worker; docs/cluster.md says so"


def test_workers_train_and_show_every_step(uninterrupted):
    workspace, weights = uninterrupted
    assert list(curve(workspace)) == list(range(12))
    assert not (workspace / "ray").exists()
    assert snapshots(str(workspace)) == []  # the cosine decay has ended: no training continues from here
    assert set(weights) == {name for name, _ in toy_objective(None).trained.named_parameters()}
    assert all(weight.dtype == torch.float32 and bool(weight.isfinite().all()) for weight in weights.values())


def test_every_step_has_its_seconds_by_part_and_those_of_communication(uninterrupted):
    workspace, _ = uninterrupted
    for entry in map(json.loads, (workspace / "curve.jsonl").read_text().splitlines()):
        assert all(entry[name] > 0 for name in METRICS)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray")
def test_a_longer_training_continues_a_finished_one_with_the_same_result(data, tmp_path):
    longer = replace(SETTINGS, decay="constant", validate_every=3, validation_rows=9, keep_best=True)
    whole = train(task(data, tmp_path / "whole", training=longer), TWO)
    short = tmp_path / "short"
    train(task(data, short, training=replace(longer, steps=8)), TWO)
    assert [step_of(name) for name in snapshots(str(short))] == [8]
    continued = task(data, tmp_path / "long", training=longer, start=newest_snapshot(str(short)))
    weights = train(continued, TWO)
    assert list(curve(tmp_path / "long")) == [8, 9, 10, 11]
    assert curve(tmp_path / "long") == {step: curve(tmp_path / "whole")[step] for step in range(8, 12)}
    assert all(torch.equal(weights[name], weight) for name, weight in whole.items())
    facts = training_facts(str(tmp_path / "long"))
    assert facts == training_facts(str(tmp_path / "whole"))
    assert facts["steps"] == 12
    assert "validation_nats_per_token" in facts


@pytest.mark.usefixtures("ray")
def test_a_training_reads_its_split_and_another_only_to_validate(data, tmp_path):
    copy = tmp_path / "data"
    publish(Path(data), str(copy))
    content = (copy / "validation.bin").read_bytes()
    (copy / "validation.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    short = replace(SETTINGS, steps=2)
    train(task(str(copy), tmp_path / "without", training=short), TWO)
    with pytest.raises(StorageError, match=r"'validation.bin' has SHA-256"):
        train(task(str(copy), tmp_path / "with", training=replace(short, validate_every=1)), TWO)


def test_what_is_finished_is_not_trained_again(uninterrupted, data):
    workspace, weights = uninterrupted
    before = (workspace / "curve.jsonl").read_text()
    again = train(task(data, workspace), TWO)
    assert (workspace / "curve.jsonl").read_text() == before
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def held_lease(workspace: Path) -> Lease:
    """A lease of this process, which nothing renews."""
    holder = leases._this_process()
    write_text(str(workspace / "lease" / "000001.json"), json.dumps(asdict(holder)))
    return Lease(str(workspace), 1, holder.key)


def committed_steps(workspace: Path) -> list[int]:
    return [step_of(name) for name in snapshots(str(workspace)) if committed_at(str(workspace), name) is not None]


def test_training_goes_on_to_the_next_checkpoint_while_the_lease_cannot_be_read(uninterrupted, data, tmp_path, capsys):
    """A folder in its place gives an error of the disk, until it is gone again."""
    lease, file = held_lease(tmp_path), tmp_path / "lease" / "000001.json"
    readable = file.rename(tmp_path / "readable.json")
    file.mkdir()
    warning = (
        r"\[toy\] rank 0: the checkpoint after step 4 could not be written \(IsADirectoryError.*; next attempt in 1 s"
    )
    printed = ""
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, task(data, tmp_path, lease=lease), TWO)
        # Checkpoints are written beside training: step 7 may come before the first attempt.
        while not training.done() and not (
            re.search(warning, printed) and (tmp_path / "curve.jsonl").exists() and 7 in curve(tmp_path)
        ):
            time.sleep(0.1)
            printed += capsys.readouterr().out
        counted, trained = committed_steps(tmp_path), 7 in curve(tmp_path)
        file.rmdir()
        readable.rename(file)
        weights = training.result()
    assert counted == []
    assert trained
    assert re.search(warning, printed)
    assert all(torch.equal(weights[name], weight) for name, weight in uninterrupted[1].items())
    assert curve(tmp_path) == curve(uninterrupted[0])


@pytest.mark.usefixtures("ray")
def test_a_lease_that_is_lost_ends_training_with_its_own_error_and_no_checkpoint_counts(data, tmp_path):
    lease = held_lease(tmp_path)
    write_text(str(tmp_path / "lease" / "000002.json"), json.dumps(asdict(leases._this_process())))
    began = time.monotonic()
    with pytest.raises(LeaseLost, match="this command no longer owns"):
        train(task(data, tmp_path, lease=lease), TWO)
    assert time.monotonic() - began < 120, "no rank waits for another"
    assert committed_steps(tmp_path) == []
    assert training_facts(str(tmp_path)) is None


@pytest.mark.chaos
def test_a_killed_worker_leaves_the_curve_and_the_weights_as_they_would_have_been(
    uninterrupted, data, tmp_path, capsys
):
    reference, weights = uninterrupted
    fault = ("kill", 9, 7, str(tmp_path / "struck"))
    actual = train(task(data, tmp_path, objective=functools.partial(toy_objective, fault)), TWO)
    time.sleep(1)  # until the last lines are printed
    assert "[toy] rank 1 died: its process was killed" in capsys.readouterr().out
    assert (tmp_path / "struck").exists()
    assert curve(tmp_path) == curve(reference)
    assert all(torch.equal(actual[name], weight) for name, weight in weights.items())


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (("hang", 9, 7), r"has taken no step for 1\d s; it stands at .*toy.py:\d+ in wrong"),
        (
            ("hang at the start", -1, 7),
            r"has taken no step for 1\d s; it stands at .*objectives.py:\d+ in toy_objective",
        ),
        (("stop", 9, 7), r"has said nothing for \d+ s: its process is stopped, or cannot be reached"),
    ],
    ids=lambda given: given[0] if isinstance(given, tuple) else "",
)
def test_a_rank_that_others_wait_for_in_a_collective_is_named_and_training_goes_on(
    uninterrupted, data, tmp_path, capsys, fault, cause
):
    reference, weights = uninterrupted
    fault = (*fault, str(tmp_path / "struck"))
    hanging = task(data, tmp_path, objective=functools.partial(toy_objective, fault))
    actual = train(hanging, replace(TWO, collective_timeout_seconds=20.0))
    time.sleep(1)  # until the last lines are printed
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if "restart" in line)
    assert re.fullmatch(
        rf"\[toy\] rank 1 \(process \d+ on \S+\) {cause}.*; restart 1 of at most 2, from the last checkpoint", line
    )
    if stopped := (tmp_path / "struck").read_text():
        assert not Path("/proc", stopped).exists()
    assert curve(tmp_path) == curve(reference)
    assert all(torch.equal(actual[name], weight) for name, weight in weights.items())


def failed(data: str, workspace: Path, kind: str, mark: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of its own, with its own Ray, whose worker has failed twice."""
    script = [sys.executable, "-m", "tests.cluster.training.failing_training", data, str(workspace), kind, mark]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **variables}
    ended = subprocess.run(script, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended


@pytest.mark.chaos
def test_a_worker_for_which_there_is_no_memory_is_named_with_that_cause(data, tmp_path):
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 4 * 2**30) / memory.total  # Ray needs some of it
    ended = failed(
        data, tmp_path, "hoard", "", RAY_memory_usage_threshold=f"{limit:.3f}", RAY_memory_monitor_refresh_ms="100"
    )
    reason = "rank 0 was killed, for its machine ran out of memory"
    assert f"[toy] {reason}; restart 1 of at most 1, from the last checkpoint" in ended.stdout
    assert f"error: toy failed 2 times, at last because {reason};" in ended.stderr


@pytest.mark.chaos
def test_secrets_in_a_workers_error_reach_neither_output_of_the_command(data, tmp_path):
    ended = failed(data, tmp_path, "leak", "Zq7abcdef")
    assert "Zq7abcdef" not in ended.stdout + ended.stderr
    reason = "ended with OSError: https://host/x?X-Amz-Signature=***, s3://***@bucket, password=***"
    assert re.search(rf"rank 0 \(.*\) {re.escape(reason)}; restart 1 of at most 1", ended.stdout)
    assert "Traceback (most recent call last)" in ended.stderr
    assert re.search(rf"^error: toy failed 2 times, .* {re.escape(reason)};", ended.stderr, re.MULTILINE)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray")
def test_a_loss_that_is_not_finite_ends_training_at_once_with_step_and_rank(data, tmp_path):
    fault = ("nan", 5, 7, "")
    with pytest.raises(NonFiniteLoss, match="the loss at step 5 on rank 1 is not finite"):
        train(task(data, tmp_path, objective=functools.partial(toy_objective, fault)), TWO)
    # Not tried again: step 0 was told once.
    steps = [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("ray")
def test_more_workers_than_the_cluster_has_is_an_error_that_names_the_resource(data, tmp_path):
    with pytest.raises(ConfigurationError, match="64 workers of toy: 64 CPU needed, the cluster has"):
        train(task(data, tmp_path, training=replace(SETTINGS, batch=64)), replace(TWO, workers=64))
    with pytest.raises(ConfigurationError, match="GPU needed, the cluster has"):
        train(task(data, tmp_path), replace(TWO, gpus_per_worker=4.0))


@pytest.mark.usefixtures("ray")
def test_a_batch_that_workers_cannot_share_evenly_is_refused_before_any_starts(data, tmp_path):
    with pytest.raises(ConfigurationError, match="multiple of 2"):
        train(task(data, tmp_path, training=replace(SETTINGS, batch=7)), TWO)
