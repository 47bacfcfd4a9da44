"""What a stage says of an earlier run that did not finish."""

import pytest
import torch

from cluster.config import Tracking
from cluster.tracking.runs import open_tracking
from edlm.checkpoints.training_state import save_snapshot
from edlm.config import load
from edlm.storage import file_system, join
from tests.paths import SMALLEST
from workflows.experiment import Experiment
from workflows.stage import StageContext
from workflows.stage_runner import RunningSession

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
