"""Training run of a stage: the task for the workers, its settings, and its curves."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.tracking.journal import history
from edlm.checkpoints.training_state import newest_snapshot
from edlm.data.preparation import Split
from edlm.huggingface.lora import merged
from edlm.training.interfaces import Objective
from edlm.training.settings import Training
from workflows.stage import Session, StageContext, say
from workflows.training.resume_from_shorter import training_to_continue

CODE = (
    "workflows.training.run",
    "workflows.training.resume_from_shorter",
    "cluster.training.workers",
    "cluster.training.deepspeed_engine",
    "cluster.training.sharded_muon",
    "cluster.training.zero_layout",
)
"""Modules that compute the weights, besides a stage's own and its objective: settings, the workers and their engine."""

Write = Callable[[Mapping[str, Tensor], Path], Any]


def run_training(
    session: Session,
    work: StageContext,
    data: str,
    split: Split,
    training: Training,
    objective: Callable[[], Objective],
    write: Write,
) -> dict[str, Any]:
    """Train, write the model to `work.folder` by `write`, adapters merged, and return facts about the training."""
    # Deferred: importing Ray and Matplotlib takes seconds, which a dry run does without.
    from cluster.tracking.training_curves import training_curves
    from cluster.training.result import training_facts
    from cluster.training.workers import TrainingTask, train

    experiment = session.experiment
    if training.lora is not None:
        objective()  # makes the adapters here, too: an error is raised before a worker starts
    weights = train(
        TrainingTask(
            name=work.stage,
            objective=objective,
            data=data,
            split=split,
            length=experiment.data.length,
            training=training,
            seed=experiment.seed,
            workspace=work.workspace,
            tracker=functools.partial(work.tracker, copied=True),
            start=_start(session, work),
            lease=work.lease,
        ),
        experiment.cluster,
    )
    write(weights if training.lora is None else merged(objective().trained, weights), work.folder)
    tracker = work.tracker(copied=True)  # now the journal of this machine has what those of the workers had
    curves = history(work.journal)
    if curves.get("loss_nats_per_token"):
        tracker.figure("curves.png", training_curves(curves, work.stage))
    tracker.close()
    facts = training_facts(work.workspace)
    assert facts is not None
    return facts


def _start(session: Session, work: StageContext) -> tuple[str, int] | None:
    """Return the final snapshot of a shorter training of this stage; report where it continues, or why not.

    None if the stage's own training is finished, or has a snapshot to resume from.
    """
    from cluster.training.result import training_facts

    if training_facts(work.workspace) is not None or newest_snapshot(work.workspace) is not None:
        return None
    start, reasons = training_to_continue(session, work.determined)
    for reason in reasons:
        say(work.stage, reason)
    if start is not None:
        say(work.stage, f"continues the finished training of {start.steps} steps in {start.folder}")
    return None if start is None else (start.snapshot, start.step)
