"""Record of a run: what MLflow needs to create it, at once or later, and again in a new database."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended."""


@dataclass(frozen=True)
class RunRecord:
    """Run as this project names it, by a key of its own; MLflow's id of it is settled when MLflow answers."""

    name: str
    experiment: str
    """Name of the MLflow experiment that it belongs to."""
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: "RunRecord | None" = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Milliseconds since 1970."""

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> "RunRecord":
        """Return the record that `dataclasses.asdict` turned into this tree; raise TypeError if it is none."""
        parent = tree.get("parent")
        return cls(**{**tree, "parent": None if parent is None else cls.parse(parent)})
