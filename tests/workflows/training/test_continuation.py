"""A stage whose `steps` grew continues its finished training if the result is the same, and otherwise says why not."""

from dataclasses import replace

import pytest
import torch

from cluster.config import Tracking
from cluster.tracking.runs import open_tracking
from edlm.checkpoints.training_state import save_snapshot
from edlm.config import load, plain
from edlm.training.settings import Training
from tests.places import SMALLEST
from workflows.dry_run import DryRun
from workflows.experiment import Experiment
from workflows.session import RunningSession
from workflows.stage import Ingredients, StageContext
from workflows.training.continuation import continuation

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

SETTINGS = Training(steps=500, batch=8, decay="constant")
CODE = ("edlm.schedule",)


def asked(training: Training, stage: str = "pretrain", seed: int = 0) -> dict:
    section = plain(training) if stage == "pretrain" else {"negatives": 7, "training": plain(training)}
    return {"denoiser": {"width": 8}, stage.replace("-", "."): section, "seed": seed}


@pytest.fixture
def session(tmp_path) -> RunningSession:
    return RunningSession(load(Experiment, SMALLEST), str(tmp_path), open_tracking(Tracking(), str(tmp_path)))


def run(session, training: Training, stage="pretrain", seed=0, taken: int | None = None, keep: bool = True):
    """Finish a stage after `taken` steps, with or without its last state; what determined it."""
    seen: list[Ingredients] = []

    def work(context: StageContext) -> None:
        seen.append(context.determined)
        (context.folder / "file").write_text(f"{training} {seed}")
        if keep:
            save_snapshot(context.workspace, {"weight": torch.zeros(1)}, taken or training.steps)

    session.run_stage(stage, asked(training, stage, seed), {}, CODE, work)
    return seen[0]


def longer(determined: Ingredients, training: Training, seed: int = 0) -> Ingredients:
    return replace(determined, settings=asked(training, determined.stage, seed))


@pytest.mark.parametrize("stage", ["pretrain", "finetune-step"])
def test_a_stage_continues_the_longest_training_that_differs_by_fewer_steps_alone(session, stage):
    run(session, replace(SETTINGS, steps=200), stage)
    determined = run(session, SETTINGS, stage, taken=450)  # it stopped early
    run(session, replace(SETTINGS, steps=1500), stage)
    start, reasons = continuation(session, longer(determined, replace(SETTINGS, steps=1000)))
    assert reasons == []
    assert start is not None
    assert (start.folder, start.steps, start.step) == (determined.folder, 500, 450)
    assert start.snapshot == session.workspace_of(determined.folder) + "/step-00000450"


@pytest.mark.parametrize(
    ("training", "seed"),
    [
        (replace(SETTINGS, steps=1000), 1),
        (replace(SETTINGS, steps=1000, batch=16), 0),
        (replace(SETTINGS, steps=1000, validate_every=10), 0),
        (replace(SETTINGS, steps=400), 0),
    ],
)
def test_another_training_is_begun_and_nothing_needs_to_be_said(session, training, seed):
    determined = run(session, SETTINGS)
    assert continuation(session, longer(determined, training, seed)) == (None, [])
    changed = replace(longer(determined, replace(SETTINGS, steps=1000)), code="0" * 64)
    assert continuation(session, changed) == (None, [])


@pytest.mark.parametrize(
    ("training", "keep", "reason"),
    [
        (replace(SETTINGS, decay="cosine"), True, "cosine decay to step 500 ends there"),
        (replace(SETTINGS, decay="cosine"), False, "cosine decay to step 500 ends there"),
        (SETTINGS, False, "its last state was not kept"),
    ],
)
def test_a_training_that_cannot_be_continued_begins_again_and_says_why(session, training, keep, reason):
    determined = run(session, training, keep=keep)
    start, reasons = continuation(session, longer(determined, replace(training, steps=1000)))
    assert start is None
    (said,) = reasons
    assert said.startswith(f"begins again, and does not continue {determined.folder}: {reason}")


def test_cosine_decay_is_continued_from_within_the_warm_up(session):
    training = replace(SETTINGS, decay="cosine", warmup_steps=500)
    determined = run(session, training)
    start, _ = continuation(session, longer(determined, replace(training, steps=1000)))
    assert start is not None
    assert start.step == 500


def test_a_dry_run_says_where_a_stage_continues_or_why_it_begins_again(session, tmp_path, capsys):
    determined = run(session, SETTINGS)
    cosine = run(session, replace(SETTINGS, decay="cosine"), "finetune-step")
    capsys.readouterr()
    dry = DryRun(session.experiment, str(tmp_path))
    for stage, decay in (("pretrain", "constant"), ("finetune-step", "cosine")):
        settings = asked(replace(SETTINGS, steps=1000, decay=decay), stage)
        dry.run_stage(stage, settings, {}, CODE, lambda _: None)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"[pretrain] continues at step 500, where {determined.folder} ended"
    assert second.startswith("[finetune-step] runs: finetune.step.training.steps changed 500 -> 1000; begins again, ")
    assert f"does not continue {cosine.folder}: cosine decay to step 500 ends there" in second
