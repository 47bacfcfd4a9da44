"""What a session does before its stages run, and what a stage says of an earlier run that did not finish."""

import os

import pytest
import torch

from cluster.config import Tracking
from cluster.tracking.runs import open_tracking
from edlm.checkpoints.training_state import save_snapshot
from edlm.config import load, parse, plain
from edlm.huggingface.remote_code import CONSENT, code_digest
from edlm.storage import file_system, join
from tests.paths import SMALLEST
from workflows.experiment import Experiment
from workflows.stage import StageContext
from workflows.stage_runner import RunningSession, open_session

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
    session = RunningSession(experiment, str(tmp_path), open_tracking(Tracking(experiment="attempts"), str(tmp_path)))
    output = []
    for work in (fails, fails_within_a_checkpoint, fails_after_a_checkpoint, fails):
        with pytest.raises(RuntimeError, match="no space"):
            session.run_stage("prepare", {}, {}, ("workflows.prepare",), work)
        output.append(capsys.readouterr().out.splitlines()[1:])
    unfinished = ["[prepare] an earlier run of it did not finish"]
    assert output == [[], unfinished, unfinished, ["[prepare] resumes from its last checkpoint"]]


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
