"""A stage whose `steps` grew continues its finished training if the result is the same, and otherwise says why not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.training.result import write_result
from edlm.checkpoints import snapshot_state
from edlm.checkpoints.snapshot_state import SnapshotState
from edlm.checkpoints.training_state import save_snapshot
from edlm.config import load, plain
from edlm.training.local_engine import LocalEngine
from edlm.training.settings import Training
from tests.paths import SMALLEST
from tests.toy import Toy
from tests.toy import training as toy_training
from tests.tracking_database import open_copied_tracking
from workflows.dry_run import DryRun
from workflows.experiment import Experiment
from workflows.stage import StageContext
from workflows.stage_fingerprint import StageInputs
from workflows.stage_runner import RunningSession
from workflows.training.resume_from_shorter import training_to_continue
from workflows.training.run import _start

# SQLAlchemy's own complaint about MLflow's models, and about nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

SETTINGS = Training(steps=500, batch=8, decay="constant")
CODE = ("edlm.schedule",)


def asked(training: Training, stage: str = "pretrain", seed: int = 0) -> dict:
    section = plain(training) if stage == "pretrain" else {"negatives": 7, "training": plain(training)}
    return {"denoiser": {"width": 8}, stage.replace("-", ".", 1): section, "seed": seed}


@pytest.fixture
def session(tmp_path) -> RunningSession:
    return RunningSession(load(Experiment, SMALLEST), str(tmp_path), open_copied_tracking(tmp_path))


def run(session, training: Training, stage="pretrain", seed=0, taken: int | None = None, keep: bool = True):
    """Finish a stage after `taken` steps, with or without its last state; what determined it."""
    seen: list[StageInputs] = []

    def work(context: StageContext) -> None:
        seen.append(context.determined)
        (context.folder / "file").write_text(f"{training} {seed}")
        if keep:
            save_snapshot(context.workspace, {"weight": torch.zeros(1)}, taken or training.steps)

    session.run_stage(stage, asked(training, stage, seed), {}, CODE, work)
    return seen[0]


def longer(determined: StageInputs, training: Training, seed: int = 0) -> StageInputs:
    return replace(determined, settings=asked(training, determined.stage, seed))


@pytest.mark.parametrize("stage", ["pretrain", "finetune-step", "finetune-per-token"])
def test_a_stage_continues_the_longest_training_that_differs_by_fewer_steps_alone(session, stage):
    run(session, replace(SETTINGS, steps=200), stage)
    determined = run(session, SETTINGS, stage, taken=450)  # it stopped early
    run(session, replace(SETTINGS, steps=1500), stage)
    start, reasons = training_to_continue(session, longer(determined, replace(SETTINGS, steps=1000)))
    assert reasons == []
    assert start is not None
    assert (start.folder, start.steps, start.step) == (determined.folder, 500, 450)
    assert start.snapshot.startswith(session.workspace_of(determined.folder) + "/step-00000450-")


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
    assert training_to_continue(session, longer(determined, training, seed)) == (None, [])
    changed = replace(longer(determined, replace(SETTINGS, steps=1000)), code="0" * 64)
    assert training_to_continue(session, changed) == (None, [])


@pytest.mark.parametrize(
    ("training", "keep", "reason"),
    [
        (replace(SETTINGS, decay="cosine"), True, "cosine decay to step 500 ends there"),
        (replace(SETTINGS, decay="cosine"), False, "cosine decay to step 500 ends there"),
        (SETTINGS, False, "its last state was not kept"),
    ],
)
def test_a_training_that_cannot_be_continued_begins_again_and_states_why(session, training, keep, reason):
    determined = run(session, training, keep=keep)
    start, reasons = training_to_continue(session, longer(determined, replace(training, steps=1000)))
    assert start is None
    (output,) = reasons
    assert output.startswith(f"begins again, and does not continue {determined.folder}: {reason}")


def test_cosine_decay_is_continued_from_within_the_warm_up(session):
    training = replace(SETTINGS, decay="cosine", warmup_steps=500)
    determined = run(session, training)
    start, _ = training_to_continue(session, longer(determined, replace(training, steps=1000)))
    assert start is not None
    assert start.step == 500


def damage(session, determined: StageInputs, file: str) -> None:
    """Alter the only snapshot in one of its files, without a change of size."""
    (folder,) = Path(session.workspace_of(determined.folder)).glob("step-*")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


TENSORS, MANIFEST = "part-00000.safetensors", "manifest.json"


def test_the_longest_training_whose_state_is_intact_is_continued_and_the_others_are_not_read(session, monkeypatch):
    shortest = run(session, replace(SETTINGS, steps=100))
    middle, longest = run(session, replace(SETTINGS, steps=200)), run(session, SETTINGS)
    now = longer(longest, replace(SETTINGS, steps=1000))
    damage(session, longest, TENSORS)
    read, verify = [], SnapshotState.verify
    monkeypatch.setattr(SnapshotState, "verify", lambda self: read.append(self._uri) or verify(self))
    start, _ = training_to_continue(session, now)
    assert start is not None
    assert start.folder == middle.folder
    assert not any(shortest.folder in uri for uri in read)
    damage(session, middle, TENSORS)
    damage(session, shortest, MANIFEST)
    start, reasons = training_to_continue(session, now)
    assert start is None
    assert len(reasons) == 3
    assert all(reason.endswith("its last state is damaged") for reason in reasons)


def test_a_dry_run_reads_no_state(session, monkeypatch):
    determined = run(session, SETTINGS)
    monkeypatch.setattr(snapshot_state, "read_ranges", lambda *_: pytest.fail("content is read"))
    start, _ = training_to_continue(session, longer(determined, replace(SETTINGS, steps=1000)), verified=False)
    assert start is not None
    assert start.step == 500


def killed_while(session, write: Callable[[StageContext], None], capsys) -> tuple[tuple[str, int] | None, str]:
    """Where a stage with a finished shorter training starts after it was killed during `write`, and what it says."""
    run(session, SETTINGS)
    seen: list[StageContext] = []

    def killed(context: StageContext) -> None:
        seen.append(context)
        write(context)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        session.run_stage("pretrain", asked(replace(SETTINGS, steps=1000)), {}, CODE, killed)
    capsys.readouterr()
    return _start(session, seen[0]), capsys.readouterr().out


def writes_half(context: StageContext) -> None:
    half = Path(context.workspace, "step-00000600")
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")


def test_a_stage_that_was_killed_while_it_wrote_its_first_snapshot_continues_the_shorter_training(session, capsys):
    start, output = killed_while(session, writes_half, capsys)
    assert start is not None
    assert start[1] == 500
    assert "continues the finished training of 500 steps" in output
    DryRun(session.experiment, session.root).run_stage(
        "pretrain", asked(replace(SETTINGS, steps=1000)), {}, CODE, lambda _: None
    )
    assert "[pretrain] continues at step 500" in capsys.readouterr().out


def publishes_its_result(context: StageContext) -> None:
    write_result(LocalEngine(Toy(), toy_training()), context.workspace, "a", {"steps": 1})


def saves_a_snapshot(context: StageContext) -> None:
    save_snapshot(context.workspace, {"weight": torch.zeros(1)}, 600)


@pytest.mark.parametrize("write", [publishes_its_result, saves_a_snapshot])
def test_a_stage_that_has_a_result_or_a_snapshot_starts_nowhere_else_and_prints_nothing(session, write, capsys):
    assert killed_while(session, write, capsys) == (None, "")


def test_a_dry_run_states_where_a_stage_continues_or_why_it_begins_again(session, tmp_path, capsys):
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
