"""A training whose checkpoints and metrics are on one disk that fills up in the middle of a save."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from cluster.tracking.journal import history, read
from cluster.tracking.runs import Runs
from edlm.checkpoints import snapshot_writer
from edlm.checkpoints.snapshot_retention import committed_at, snapshots, step_of
from edlm.storage import StorageError
from edlm.training.checkpointing import Checkpointing
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from tests import toy
from tests.small_disk import fill, free, room, small_disk

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
SETTINGS = toy.training(steps=100, checkpoint_every=20, log_every=1, decay="constant")


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr(snapshot_writer, "FIRST_PAUSE", 0.05)


def trained(runs: Runs, disk: Path, after: Callable[[int], None], patience: float = 60) -> dict[str, torch.Tensor]:
    """The weights of a training on a disk; `after` is called after every step, in its thread."""
    objective = toy.Toy()
    torch.manual_seed(5)
    objective.trained.append(nn.Linear(toy.VOCABULARY, 8000))  # of 0.6 MB, of which a disk can take a part
    objective.trained.append(nn.Linear(8000, toy.VOCABULARY))
    engine, tracker = LocalEngine(objective, SETTINGS), runs.tracker(runs.start("pretrain"), disk / "journal")
    checkpointing = Checkpointing(engine, str(disk), patience=patience, before_commit=tracker.secure)
    checkpointing.resume()

    def log(step: int, metrics) -> None:
        tracker.log(step, {name: value for name, value in metrics.items() if not name.startswith("seconds")})
        after(step)

    try:
        with checkpointing:
            fit(engine, toy.rows, SETTINGS, 0, log, checkpointing.save)
    finally:
        tracker.close()
    return engine.export()


def committed_steps(disk: Path) -> list[int]:
    return [step_of(name) for name in snapshots(str(disk)) if committed_at(str(disk), name) is not None]


def half_fill(disk: Path) -> None:
    """Leave room for half of another checkpoint, once the first is there."""
    while not committed_steps(disk):
        time.sleep(0.01)
    part = next(disk.glob("step-*/part-00000.safetensors"))
    fill(disk, besides=part.stat().st_size // 2)


def fill_to_the_last(disk: Path, attempts: Callable[[], int]) -> None:
    """Fill what each attempt to save that failed has left, until nothing is."""
    while attempts() == 0 or room(disk):
        before = attempts()
        with suppress(OSError):  # while an attempt takes what was free
            fill(disk)
        while attempts() == before:
            time.sleep(0.01)


def test_one_that_is_freed_costs_time_and_nothing_else(runs, tmp_path, caplog):
    """It has room for half of the second checkpoint, then for no line of the journal, until the third one waits."""
    expected = trained(runs, tmp_path / "whole", lambda _: None)
    taken: list[int] = []
    waited: list[Future[list[int]]] = []

    def attempts() -> int:
        return caplog.text.count("next attempt")

    with small_disk(tmp_path / "disk", "32m") as disk, ThreadPoolExecutor(1) as pool:

        def free_later() -> list[int]:
            before = attempts()
            while attempts() < before + 2 or taken[-1] < 59:
                time.sleep(0.01)
            free(disk)
            return committed_steps(disk)

        def after(step: int) -> None:
            taken.append(step)
            if step == 25:
                half_fill(disk)
            if step == 40:
                fill_to_the_last(disk, attempts)
                waited.append(pool.submit(free_later))

        actual = trained(runs, disk, after)
        assert waited[0].result() == [20]
        assert committed_steps(disk) == [80, 100]
        steps = [entry["step"] for entry in read(disk / "journal") if entry["kind"] == "metrics"]
        losses = history(disk / "journal")["loss_nats_per_token"]
    assert "entries.jsonl'; what comes is kept in memory until there is space" in caplog.text
    assert steps == taken == list(range(100))
    assert losses == history(tmp_path / "whole" / "journal")["loss_nats_per_token"]
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


def test_one_that_stays_full_is_an_error_after_patience_and_nothing_half_written_is_left(runs, tmp_path):
    with small_disk(tmp_path / "disk", "32m") as disk:

        def after(step: int) -> None:
            if step == 25:
                half_fill(disk)

        with pytest.raises(StorageError, match=r"checkpoint after step 40; the one before is still there: .*Errno 28"):
            trained(runs, disk, after, patience=0.2)
        assert [path.parent.name[:13] for path in disk.glob("step-*/*.safetensors")] == ["step-00000020"]
