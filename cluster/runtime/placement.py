"""Placement of a command's own actors on the machine of the command."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def on_this_machine() -> NodeAffinitySchedulingStrategy:
    """Return the strategy by which an actor starts on the machine of this process, and again there.

    Not a soft one: Ray takes any machine for a soft strategy and an actor that reserves nothing, and the actor would be
    lost with that machine. Without this one, the command is gone as well.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
