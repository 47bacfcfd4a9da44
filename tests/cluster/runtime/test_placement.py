"""The actors of a command are on its machine, even one without processors, as the head of a cluster may be."""

from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.runtime.placement import on_this_machine

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]
STORE = 80_000_000  # bytes


@ray.remote(num_cpus=0)
class Helper:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def test_actors_that_reserve_nothing_start_on_the_machine_of_the_command():
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    try:
        for _ in range(2):
            machines.add_node(num_cpus=1, object_store_memory=STORE)
        ray.init(address=machines.address, log_to_driver=False)
        helpers: list[Any] = [
            Helper.options(max_restarts=-1, scheduling_strategy=on_this_machine()).remote() for _ in range(8)
        ]
        nodes = set(ray.get([helper.node.remote() for helper in helpers]))
        assert machines.head_node is not None
        assert nodes == {machines.head_node.node_id}
    finally:
        ray.shutdown()
        machines.shutdown()
