"""Release of the resources that workers hold whose controller died.

Ray Train's controller reserves a placement group for its workers. If it dies, the group remains until the whole job
ends. Ray Train's own cleaner, an actor per training, would need the dashboard, which a private Ray does not have; it is
not started (`cluster.training.trainer`).
"""

import ray
from ray import PlacementGroupID
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]
from ray.util.placement_group import PlacementGroup, remove_placement_group


def release_abandoned_workers() -> None:
    """End the workers of this job's dead controllers, and free what they hold."""
    job = ray.get_runtime_context().get_job_id()
    abandoned = [
        PlacementGroupID(group.placement_group_id)
        for group in map(
            PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table()
        )
        if group.creator_job_id.hex() == job
        and group.creator_actor_dead
        and group.state != PlacementGroupTableData.REMOVED
    ]
    for group in abandoned:
        remove_placement_group(PlacementGroup(group))
