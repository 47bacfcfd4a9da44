"""What a session does before its stages run, and what a stage says of an earlier run that did not finish."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.config import Tracking
from cluster.tracking.journal import ENTRIES, Journal, history, read
from cluster.tracking.journal_folder import journals_folder
from cluster.tracking.leftovers import LeftoverShipping
from cluster.tracking.runs import open_tracking
from edlm.checkpoints.lease import LeaseHeld, LeaseLost
from edlm.checkpoints.training_state import save_snapshot
from edlm.config import load, parse, plain
from edlm.file_systems import file_system
from edlm.huggingface.remote_code import CONSENT, code_digest
from edlm.storage import INTENT, MARKER, join
from tests.paths import PROJECT, SMALLEST
from tests.small_disk import fill, small_disk
from tests.tracking_database import copy_database, open_copied_tracking
from workflows.experiment import Experiment
from workflows.stage import INTERMEDIATE, RUN_FILE, StageContext
from workflows.stage_runner import RunningSession, _shipping_leftovers, open_session

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def fails(_: StageContext) -> None:
    raise RuntimeError("no space")


def fails_after_a_checkpoint(work: StageContext) -> None:
    save_snapshot(work.workspace, {"weight": torch.zeros(1)}, step=3)
    raise RuntimeError("no space")


def fails_within_a_checkpoint(work: StageContext) -> None:
    system, path = file_system(join(work.workspace, "step-00000001"))
    system.makedirs(path)
    raise RuntimeError("no space")


def test_a_stage_resumes_only_where_it_has_a_checkpoint(tmp_path, capsys):
    experiment = load(Experiment, SMALLEST)
    session = RunningSession(experiment, str(tmp_path), open_copied_tracking(tmp_path, "attempts"))
    output = []
    for work in (fails, fails_within_a_checkpoint, fails_after_a_checkpoint, fails):
        with pytest.raises(RuntimeError, match="no space"):
            session.run_stage("prepare", {}, {}, ("workflows.prepare",), work)
        output.append(capsys.readouterr().out.splitlines()[1:])
    unfinished = ["[prepare] an earlier run of it did not finish"]
    assert output == [[], unfinished, unfinished, ["[prepare] resumes from its last checkpoint"]]


def test_a_stage_that_is_reused_has_nothing_of_a_command_that_was_killed_after_its_commit(tmp_path):
    session = RunningSession(load(Experiment, SMALLEST), str(tmp_path), open_copied_tracking(tmp_path, "reused"))

    def works(work: StageContext) -> None:
        (work.folder / "output").write_text("made")

    output = Path(session.run_stage("prepare", {}, {}, ("workflows.prepare",), works))
    (output / INTENT).write_text("{}")
    intermediate = tmp_path / "smallest" / "work" / output.name / INTERMEDIATE
    intermediate.mkdir()
    (intermediate / "0.shard").write_text("encoded")
    assert session.run_stage("prepare", {}, {}, ("workflows.prepare",), fails) == str(output)
    assert sorted(path.name for path in output.iterdir()) == [MARKER, "output"]
    assert not intermediate.exists()


def test_what_failed_is_raised_where_a_full_disk_takes_no_record_of_it(tmp_path, capsys):
    copy_database(tmp_path)
    runs = open_tracking(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="full"), str(tmp_path))
    with small_disk(tmp_path / "disk", "256k") as disk:
        session = RunningSession(load(Experiment, SMALLEST), str(disk), runs)

        def fills_it_and_fails(work: StageContext) -> None:
            fill(disk)
            with (work.journal / ENTRIES).open("ab", buffering=0) as file:
                file.write(b"x\n" * 4096)  # as much as the file's last block has room for
            raise RuntimeError("the cause")

        with pytest.raises(RuntimeError, match="the cause"):
            session.run_stage("prepare", {}, {}, ("workflows.prepare",), fills_it_and_fails)
    assert "[prepare] its run has no record of how it ended: [Errno 28]" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [None, "", "{", "[]", '{"run_id": "of an earlier version"}'])
def test_an_unfinished_stage_goes_on_in_its_run_though_the_record_of_it_is_lost(tmp_path, capsys, damage):
    experiment = load(Experiment, SMALLEST)
    session = RunningSession(experiment, str(tmp_path), open_copied_tracking(tmp_path, "lost"))
    runs = set()
    for work in (fails, fails):
        with pytest.raises(RuntimeError, match="no space"):
            session.run_stage("prepare", {}, {}, ("workflows.prepare",), work)
        (record,) = tmp_path.glob(f"*/work/*/{RUN_FILE}")
        runs.add(json.loads(record.read_text())["run"]["key"])
        record.unlink()
        if damage is not None:
            record.write_text(damage)
    assert len(runs) == 1
    assert "an earlier run of it did not finish" in capsys.readouterr().out


def test_metrics_of_a_killed_command_with_remote_storage_reach_mlflow_by_the_next_one(tmp_path, monkeypatch):
    """The journal cannot lie beside the outputs, and must not lie in a temporary folder."""
    monkeypatch.setenv("EDLM_HOME", str(tmp_path / "home"))
    root = f"memory://{tmp_path.name}"
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="remote")
    copy_database(tmp_path)
    runs = open_tracking(tracking, root)
    session = RunningSession(load(Experiment, SMALLEST), root, runs)

    def is_killed(work: StageContext) -> None:
        unsent = Journal(work.journal, session.run_of(work.determined.folder))
        unsent.append("metrics", step=7, values={"loss": 1.0})
        unsent.close()
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        session.run_stage("prepare", {}, {}, ("workflows.prepare",), is_killed)
    (journal,) = (tmp_path / "home" / "journals").glob("smallest-*/prepare-*/journal")
    assert set(tmp_path.rglob("entries.jsonl")) == {journal / "entries.jsonl"}
    assert history(journal) == {"loss": {7: 1.0}}
    leftovers = LeftoverShipping(tracking, root, journals_folder(session.outputs))
    leftovers.start()
    leftovers.stop()
    (mlflow_experiment,) = runs.client.search_experiments(filter_string="name = 'remote'")
    (run,) = runs.client.search_runs([mlflow_experiment.experiment_id])
    assert (run.data.metrics, run.info.status) == ({"loss": 1.0}, "FAILED")


def test_a_session_consents_to_the_makers_code_before_it_connects(tmp_path, monkeypatch, capsys):
    """A private Ray's processes inherit consent that is given before it starts; here nothing starts, by the URI."""
    their_code = pytest.importorskip("tests.huggingface.their_code")
    folder = their_code.save_theirs(tmp_path / "theirs", tmp_path)
    network = {"kind": "huggingface", "folder": str(folder), "trust_remote_code": True}
    changes = {"denoiser": network, "storage": str(tmp_path / "home"), "tracking": {"uri": "nowhere"}}
    experiment = parse(Experiment, plain(load(Experiment, SMALLEST)) | changes)
    monkeypatch.setenv(CONSENT, "")
    with pytest.raises(SystemExit), open_session(experiment):
        pytest.fail("the session is open")
    assert "tracking.uri: 'nowhere' is neither a server nor a database" in capsys.readouterr().err
    code = {name: (folder / name).read_text(encoding="utf-8") for name in ("modeling_theirs.py", "mixing.py")}
    assert os.environ[CONSENT] == code_digest(code)
    (folder / "mixing.py").unlink()
    with pytest.raises(SystemExit), open_session(experiment):
        pytest.fail("the session is open")
    assert "imports mixing.py, directly or not, which is not there" in capsys.readouterr().err


def test_a_stage_that_another_command_runs_is_refused_before_anything_is_written(tmp_path):
    experiment = load(Experiment, SMALLEST)
    first, second = (
        RunningSession(experiment, str(tmp_path), open_tracking(Tracking(experiment="leases"), str(tmp_path)))
        for _ in range(2)
    )

    def work(work: StageContext) -> None:
        before = sorted(Path(work.workspace).rglob("*"))
        with pytest.raises(LeaseHeld, match="written by process"):
            second.run_stage("prepare", {}, {}, ("workflows.prepare",), fails)
        assert sorted(Path(work.workspace).rglob("*")) == before

    output = first.run_stage("prepare", {}, {}, ("workflows.prepare",), work)
    assert second.run_stage("prepare", {}, {}, ("workflows.prepare",), fails) == output


def test_a_command_that_lost_its_lease_publishes_nothing(tmp_path):
    experiment = load(Experiment, SMALLEST)
    session = RunningSession(experiment, str(tmp_path), open_tracking(Tracking(experiment="lost"), str(tmp_path)))

    def loses_its_lease(work: StageContext) -> None:
        (work.folder / "file").write_text("content")
        shutil.rmtree(Path(work.workspace, "lease"))

    with pytest.raises(LeaseLost, match="its lease is gone"):
        session.run_stage("prepare", {}, {}, ("workflows.prepare",), loses_its_lease)
    assert session.finished("prepare") == {}


@pytest.fixture
def killed(tmp_path, request) -> RunningSession:
    """A session like one whose process was killed in the middle of a stage, when `request.param` says."""
    root = tmp_path / "home"
    copy_database(root)
    script = [sys.executable, "-m", "tests.workflows.killed_session", str(root), request.param]
    assert subprocess.run(script, cwd=PROJECT, check=False).returncode == -signal.SIGKILL
    runs = open_tracking(Tracking(experiment="killed"), str(root))
    return RunningSession(load(Experiment, SMALLEST), str(root), runs)


def ends(session: RunningSession) -> list[tuple[str, str | None]]:
    """Status and output of every run, as MLflow has them once all is sent."""
    leftovers = LeftoverShipping(session.runs.tracking, session.root, journals_folder(session.outputs))
    leftovers.start()
    leftovers.stop()
    (experiment,) = session.runs.client.search_experiments(filter_string="name = 'killed'")
    runs = session.runs.client.search_runs([experiment.experiment_id])
    return sorted((run.info.status, run.data.tags.get("edlm.output")) for run in runs)


@pytest.mark.parametrize("killed", ["published"], indirect=True)
def test_a_run_whose_command_was_killed_at_the_hand_over_is_finished_by_the_next_that_reuses_its_output(killed, capsys):
    assert ends(killed) == [("RUNNING", None)]
    output = killed.run_stage("prepare", {"seed": 1}, {}, ("workflows.prepare",), fails)
    assert "reused" in capsys.readouterr().out
    assert ends(killed) == [("FINISHED", output)]


@pytest.mark.parametrize("killed", ["published"], indirect=True)
def test_so_it_is_where_the_journal_went_down_with_its_machine(killed):
    ends(killed)
    (journal,) = Path(killed.outputs).glob("work/*/journal")
    shutil.rmtree(journal)
    output = killed.run_stage("prepare", {"seed": 1}, {}, ("workflows.prepare",), fails)
    assert ends(killed) == [("FINISHED", output)]


@pytest.mark.parametrize(("killed", "end"), [("published", "FINISHED"), ("working", "KILLED")], indirect=["killed"])
def test_a_run_of_a_stage_that_no_command_needs_any_more_is_ended_as_what_became_of_it(killed, end):
    """As its settings have changed; one that a process works on is left alone."""

    def meanwhile(_: StageContext) -> None:
        with _shipping_leftovers(killed):
            pass

    other = killed.run_stage("prepare", {"seed": 2}, {}, ("workflows.prepare",), meanwhile)
    (status, output), *rest = sorted(ends(killed), key=lambda found: found[1] == other)
    assert (status, output is not None) == (end, end == "FINISHED")
    assert rest == [("FINISHED", other)]
    (second,) = (path for path in journals_folder(killed.outputs).glob("*/journal") if path.parent.name in other)
    assert [entry["value"] for entry in read(second) if entry["kind"] == "status"] == ["RUNNING", "FINISHED"]
