"""Result of a training: the weights to keep, in a folder of the workspace, in the parts that its workers wrote."""

from collections.abc import Mapping
from dataclasses import replace

import pydantic

from edlm.checkpoints.snapshot_manifest import read_manifest
from edlm.checkpoints.snapshot_writer import commit, write_part
from edlm.checkpoints.state_slices import StateSource
from edlm.checkpoints.training_state import open_snapshot
from edlm.storage import join
from edlm.training.checkpointing import raise_on_all
from edlm.training.interfaces import Engine

RESULT = "result"


def write_result(engine: Engine, workspace: str, facts: Mapping[str, pydantic.JsonValue]) -> None:
    """Write the engine's weights to keep, each rank its part, and commit them. All ranks call it."""
    uri, error = join(workspace, RESULT), None
    try:
        write_part(uri, engine.rank, [replace(one, values=one.values.cpu()) for one in engine.exported_part()])
    except Exception as failure:  # of many classes: each store's client has its own
        error = failure
    raise_on_all(engine, error)  # and all parts are there
    if engine.rank == 0:
        commit(uri, engine.step, RESULT, engine.world_size, facts)


def training_facts(workspace: str) -> dict[str, pydantic.JsonValue] | None:
    """Return facts about a finished training: the steps taken, the lowest validation loss if there is one, and how many
    parameters train if not all do. None if it is not finished.
    """
    manifest = read_manifest(join(workspace, RESULT))
    return None if manifest is None else manifest.facts


def read_result(workspace: str) -> StateSource:
    """Return the weights of a finished training, unsharded; they are read, and verified, when they are accessed."""
    return open_snapshot(join(workspace, RESULT))
