"""What the training stages share: a task for the workers, its settings, its curves."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.figures import training_curves
from cluster.journal import history
from cluster.workers import TrainingTask, train
from edlm.tokens import Split
from edlm.training import Objective, Training
from workflows.stage import Session, Work

CODE = ("workflows.objectives", "workflows.train", "cluster.zero")
"""What computes the weights, beside the stage's own module: objectives, settings, the workers' engine."""

Write = Callable[[Mapping[str, Tensor], Path], Any]


def run_training(
    session: Session,
    work: Work,
    data: str,
    split: Split,
    training: Training,
    objective: Callable[[], Objective],
    write: Write,
) -> dict[str, Any]:
    """Afterwards `work.folder` holds the model that `write` made of the trained weights; facts about the training."""
    experiment = session.experiment
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
            tracker=work.tracker,
        ),
        experiment.cluster,
    )
    write(weights, work.folder)
    curves = history(work.journal)
    if curves.get("loss_nats_per_token"):
        tracker = work.tracker()
        tracker.figure("curves.png", training_curves(curves, work.stage))
        tracker.close()
    return {"steps": training.steps}
