"""Standing of a rank: how many collectives it has entered, and for how long it has taken no step."""

from dataclasses import dataclass
from typing import Any

from torch.distributed import distributed_c10d


@dataclass(frozen=True)
class Standing:
    """What a rank last said of itself."""

    where: str
    """Its machine and process."""
    collectives: int
    """How many it has entered, in all its groups."""
    silent: float
    """Seconds for which it had taken no step."""
    unheard: float = 0.0
    """Seconds since it said so."""


def collectives_entered() -> int:
    """Return how many collectives this process has entered (with NCCL, put into the GPU's queue), in all its groups.

    All ranks enter the same ones, and torch's backends count them. So the rank with the lowest number is the one that
    the others wait for, wherever their threads stand: with NCCL, that is at the next line that needs a value.
    """
    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)
