"""The target number of replicas, from the state of Serve's autoscaler."""

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext

from cluster.serving.autoscaling import BACKLOG, ByBacklog

POLICY = ByBacklog(target_backlog_seconds=2.0, target_ongoing_requests=10.0)


def target_replicas(requests: float, backlog: dict[int, float], running: int) -> int:
    replicas = [ReplicaID(str(number), DeploymentID("edlm", "edlm")) for number in range(max(running, *backlog, 0) + 1)]
    context = AutoscalingContext(
        deployment_id=DeploymentID("edlm", "edlm"),
        deployment_name="edlm",
        app_name="edlm",
        current_num_replicas=running,
        target_num_replicas=running,
        running_replicas=replicas[:running],
        total_num_requests=requests,
        total_queued_requests=0.0,
        aggregated_metrics={BACKLOG: {replicas[number]: seconds for number, seconds in backlog.items()}},
        raw_metrics={},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
    )
    return POLICY(context)[0]


def test_few_long_requests_ask_for_more_replicas_than_many_short_ones():
    assert target_replicas(requests=2, backlog={0: 9.0}, running=1) == 5
    assert target_replicas(requests=60, backlog={0: 1.0}, running=1) == 1


def test_the_work_of_all_replicas_counts():
    assert target_replicas(requests=9, backlog={0: 3.0, 1: 2.5}, running=2) == 3


def test_a_replica_that_has_not_told_yet_is_not_taken_for_idle():
    assert target_replicas(requests=25, backlog={0: 0.1}, running=2) == 3


def test_without_requests_no_replica_runs_and_with_one_at_least_one():
    assert target_replicas(requests=0, backlog={0: 0.0}, running=1) == 0
    assert target_replicas(requests=0.3, backlog={0: 0.0}, running=1) == 1


def test_what_a_stopped_replica_reported_last_does_not_count():
    assert target_replicas(requests=9, backlog={0: 3.0, 1: 100.0}, running=1) == 2
    assert target_replicas(requests=25, backlog={0: 100.0}, running=0) == 3
