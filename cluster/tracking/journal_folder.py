"""Folders of journals: with the checkpoints where these are local files, else in a durable folder of this machine."""

import hashlib
import os
from pathlib import Path

from edlm.config import ConfigurationError
from edlm.storage import join

WORK = "work"
JOURNAL = "journal"


def journals_folder(outputs: str) -> Path:
    """Return this machine's folder for the journals of the runs whose outputs are at the URI `outputs`.

    Outputs on a local or shared disk have them in `work`, those in an object store below `machine_folder`.
    """
    if not in_object_store(outputs):
        return Path(outputs.removeprefix("file://")) / WORK
    name, digest = outputs.rstrip("/").rpartition("/")[2], hashlib.sha256(outputs.encode()).hexdigest()[:12]
    return machine_folder() / "journals" / f"{name}-{digest}"


def journal_folder(outputs: str, stage_folder: str) -> Path:
    """Return this machine's folder for the journal of a stage, named by its folder among the outputs."""
    return journals_folder(outputs) / stage_folder / JOURNAL


def copy_uri(outputs: str, stage_folder: str) -> str | None:
    """Return where the journal's metrics are copied to; None where the journal itself outlives its machine."""
    return join(outputs, WORK, stage_folder, JOURNAL) if in_object_store(outputs) else None


def in_object_store(outputs: str) -> bool:
    """Return whether the URI is none of a folder."""
    return "://" in outputs.removeprefix("file://")


def machine_folder() -> Path:
    """Return the folder of this machine that outlives processes: EDLM_HOME if it is local, else ~/.local/state/edlm.

    XDG_STATE_HOME replaces ~/.local/state. Raises ConfigurationError if the user has no home folder either.
    """
    home = os.environ.get("EDLM_HOME", "").removeprefix("file://")
    if home and "://" not in home:
        return Path(home).expanduser().resolve()
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "edlm"
    try:
        return Path.home() / ".local" / "state" / "edlm"
    except RuntimeError as error:
        raise ConfigurationError(
            "EDLM_HOME: missing, and this user has no home folder; metrics are kept in it until MLflow has them, so "
            "set EDLM_HOME to a local folder (with --storage for the outputs)"
        ) from error
