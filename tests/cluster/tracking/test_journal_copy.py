"""Metrics that were secured are in the journal of the next machine, whatever the one that wrote them had sent."""

import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.tracking.journal import Journal, history, read
from cluster.tracking.journal_copy import JournalCopy, restore
from cluster.tracking.journal_folder import copy_uri
from cluster.tracking.run_handle import RunHandle
from cluster.tracking.run_record import RunRecord
from cluster.tracking.run_tracker import RunTracker
from edlm.file_systems import file_system
from tests.cluster.tracking.histories import steps_of

RUN = RunRecord("pretrain", "edlm", {})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    launches=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), min_size=1, max_size=5),
    every=st.integers(1, 4),
)
def test_a_launch_on_any_machine_has_all_metrics_before_the_checkpoint_that_it_resumes_from(tmp_path, launches, every):
    """Each launch runs on a machine, resumes from the newest checkpoint, and is killed some steps later."""
    folder, checkpoint = tmp_path / uuid.uuid4().hex, 0
    uri = f"memory://{folder.name}/journal"
    for number, (machine, steps) in enumerate(launches):
        journal = Journal(folder / machine, RUN)
        restore(uri, journal)
        copy = JournalCopy(folder / machine, uri)
        assert set(range(checkpoint)) <= history(folder / machine).get("loss", {}).keys()
        for step in range(checkpoint, checkpoint + steps):
            journal.append("metrics", step=step, values={"loss": float(step), f"of launch {number}": 1.0})
            if (step + 1) % every == 0:
                copy.save()
                checkpoint = step + 1
        journal.close()
    last = Journal(folder / "c", RUN)
    restore(uri, last)
    restore(uri, last)
    assert list(history(folder / "c").get("loss", {}).items()) == [(step, float(step)) for step in range(checkpoint)]
    points = [(name, entry["step"]) for entry in read(folder / "c") if "values" in entry for name in entry["values"]]
    assert len(points) == len(set(points))
    last.close()


@pytest.mark.parametrize(
    ("damage", "kept", "warning"),
    [
        (lambda content: content.replace(b"0.5", b"0.\xff"), [1, 2], "1 lines of the metrics in memory://"),
        (lambda content: content[:-20], [0, 1], None),  # cut off within the last line
    ],
)
def test_damaged_lines_of_a_copy_are_counted_and_half_a_last_one_is_dropped(tmp_path, caplog, damage, kept, warning):
    uri = f"memory://{tmp_path.name}/copy"
    journal = Journal(tmp_path / "gone", RUN)
    copy = JournalCopy(tmp_path / "gone", uri)
    for step in range(3):
        journal.append("metrics", step=step, values={"loss": step + 0.5})
    copy.save()
    journal.close()
    system, root = file_system(uri)
    (path,) = system.find(root)
    system.pipe_file(path, damage(system.cat_file(path)))
    following = Journal(tmp_path / "next", RUN)
    restore(uri, following)
    following.close()
    assert list(history(tmp_path / "next")["loss"]) == kept
    assert [line for line in caplog.messages if warning is None or not line.startswith(warning)] == []
    assert len(caplog.messages) == (warning is not None)


def test_what_a_machine_that_is_gone_had_not_sent_reaches_mlflow_from_the_next_one_and_nothing_twice(runs, tmp_path):
    record, copy = runs.start("pretrain"), f"memory://{tmp_path.name}/copy"
    journal = Journal(tmp_path / "gone", record)
    saved = JournalCopy(tmp_path / "gone", copy)
    for step in range(5):
        journal.append("metrics", step=step, values={"loss": float(step)})
    saved.save()
    journal.append("metrics", step=5, values={"loss": 5.0})
    journal.close()
    for machine in ("next", "command"):
        tracker = RunTracker(runs.tracking, runs.root, record, tmp_path / machine, copy)
        if machine == "next":
            tracker.log(5, {"loss": 5.0})
        tracker.secure()
        tracker.close()
    assert steps_of(runs, record) == list(range(6))
    assert list(history(tmp_path / "command")["loss"]) == list(range(6))


def test_a_journal_on_a_disk_that_all_share_is_not_copied(runs, tmp_path):
    assert copy_uri(str(tmp_path), "pretrain-1") is None
    assert copy_uri("s3://bucket/edlm/tiny", "pretrain-1") == "s3://bucket/edlm/tiny/work/pretrain-1/journal"
    handle = RunHandle(runs.tracking, runs.root, runs.start("pretrain"), str(tmp_path), "pretrain-1")
    tracker = handle(copied=True)
    tracker.log(0, {"loss": 1.0})
    tracker.secure()
    tracker.close()
    assert {path.name for path in (tmp_path / "work" / "pretrain-1" / "journal").iterdir()} >= {"entries.jsonl"}
    assert not list((tmp_path / "work").rglob("*-000000.jsonl"))
