"""What MLflow has of the runs of a test: each metric's points, which a disturbed run repeats."""

from dataclasses import dataclass

from mlflow import MlflowClient

from tests.chaos.repeatable_metrics import is_repeatable

Points = dict[str, list[tuple[int, float]]]
"""Of every metric each point, in order."""


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow."""

    name: str
    status: str
    metrics: Points


def tracked(uri: str, experiment: str) -> list[TrackedRun]:
    """Return every run of an MLflow experiment."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return [
        TrackedRun(
            str(run.info.run_name),
            run.info.status,
            {
                metric: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
                for metric in run.data.metrics
            },
        )
        for run in client.search_runs([found.experiment_id])
    ]


def require_same_points(actual: Points, expected: Points) -> None:
    """Raise AssertionError unless each metric has its points once, and those of the model the same values."""
    assert actual.keys() == expected.keys()
    for name, points in expected.items():
        steps = sorted(step for step, _ in actual[name])
        assert steps == sorted(step for step, _ in points), f"{name}: points are lost, or there twice"
        if is_repeatable(name):
            assert sorted(actual[name]) == sorted(points), f"{name} differs"
