"""Standing of a rank: how many collectives it has entered, and for how long it has taken no step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """What a rank last said of itself."""

    where: str
    """Its machine and process."""
    collectives: int
    """How many it has entered, in all its groups."""
    silent: float
    """Seconds for which it had taken no step."""
    waits: bool = False
    """Whether its thread stood in a collective, or in the setup of one, which is not counted."""
    unheard: float = 0.0
    """Seconds since it said so."""
