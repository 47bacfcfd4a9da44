"""A session that is killed in the middle of a stage: python -m tests.workflows.killed_session ROOT WHEN.

WHEN: `working`, or `published`, between the output and the end of its run.
"""

import os
import signal
import sys

from cluster.config import Tracking
from cluster.tracking.runs import open_tracking
from edlm.config import load
from tests.paths import SMALLEST
from workflows import stage_runner
from workflows.experiment import Experiment
from workflows.stage import StageContext
from workflows.stage_runner import RunningSession


def kill_this_process(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(work: StageContext) -> None:
    if sys.argv[2] == "working":
        kill_this_process()
    (work.folder / "output").write_text("made")


def main() -> None:
    hand_over = stage_runner.hand_over
    stage_runner.hand_over = lambda *given, **named: kill_this_process(hand_over(*given, **named))  # type: ignore[assignment]
    root = sys.argv[1]
    session = RunningSession(load(Experiment, SMALLEST), root, open_tracking(Tracking(experiment="killed"), root))
    session.run_stage("prepare", {"seed": 1}, {}, ("workflows.prepare",), work)


if __name__ == "__main__":
    main()
