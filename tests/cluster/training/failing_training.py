"""A command whose worker fails each time, by a fault of `toy_objective`: python -m MODULE DATA WORKSPACE KIND MARK."""

import functools
import sys

from cluster.config import Cluster
from cluster.runtime.ray_connection import connect
from cluster.training.workers import TrainingTask, train
from edlm.training.settings import Training
from tests.cluster.training.objectives import FileTracker, toy_objective
from workflows.stage import user_errors


def main(data: str, workspace: str, kind: str, mark: str) -> None:
    cluster = Cluster(workers=1, restarts=1)
    task = TrainingTask(
        name="toy",
        objective=functools.partial(toy_objective, (kind, 2, 7, mark)),
        data=data,
        split="train",
        length=6,
        training=Training(steps=4, batch=8, learning_rate=1e-2, checkpoint_every=4),
        seed=0,
        workspace=workspace,
        tracker=functools.partial(FileTracker, f"{workspace}/curve.jsonl"),
    )
    with user_errors(), connect(cluster):
        train(task, cluster)


if __name__ == "__main__":
    main(*sys.argv[1:])
