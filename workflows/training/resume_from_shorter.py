"""Resuming from a shorter training: the finished one that a stage continues when only its `steps` grew."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edlm.checkpoints.training_state import NoValidSnapshot, newest_snapshot, verify_snapshot
from edlm.config import parse
from edlm.training.resume_compatibility import incompatibility
from edlm.training.settings import Training
from workflows.stage import Session
from workflows.stage_fingerprint import StageInputs


@dataclass(frozen=True)
class Start:
    """A finished training to continue: its folder, its `steps`, and its last state."""

    folder: str
    steps: int
    snapshot: str
    step: int
    """Steps taken: fewer than `steps` after an early stop."""


def training_to_continue(
    session: Session, determined: StageInputs, verified: bool = True
) -> tuple[Start | None, list[str]]:
    """Return the longest candidate that can be continued, and no reasons; or None, and why each cannot be.

    Candidates are finished trainings of the same stage with fewer `steps` and otherwise equal settings. Only the state
    to continue from is read; without `verified`, as in a dry run, none is.
    """
    starts, reasons = [], []
    for folder, earlier in _shorter(session, determined):
        newest, missing = _last_state(session.workspace_of(folder))
        reason = incompatibility(earlier, earlier["steps"] if newest is None else newest[1], _training(determined))
        if reason is None and newest is not None:
            starts.append(Start(folder, earlier["steps"], *newest))
        else:
            reasons.append(_not_continued(folder, reason or missing))
    for start in sorted(starts, key=lambda start: start.step, reverse=True):
        if not verified or _is_intact(start.snapshot):
            return start, []
        reasons.append(_not_continued(start.folder, "its last state is damaged"))
    return None, reasons


def _last_state(workspace: str) -> tuple[tuple[str, int] | None, str]:
    """Return the newest snapshot of a workspace, or None and why there is none."""
    try:
        return newest_snapshot(workspace), "its last state was not kept"
    except NoValidSnapshot:
        return None, "its last state is damaged"


def _is_intact(snapshot: str) -> bool:
    try:
        verify_snapshot(snapshot)
    except ValueError:
        return False
    return True


def _not_continued(folder: str, reason: str) -> str:
    return f"begins again, and does not continue {folder}: {reason}"


def _shorter(session: Session, determined: StageInputs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the folder and the training settings of finished outputs that differ by fewer steps alone."""
    now = determined.public
    if (training := _section(now.settings)) is None:
        return
    for name, earlier in session.finished(determined.stage).items():
        if earlier is None:
            continue
        before = _section(earlier.settings)
        if before is None or before["steps"] >= training["steps"]:
            continue
        longer = replace(earlier, settings=_with_steps(earlier.settings, training["steps"]))
        if longer == now:
            yield name, before


def _section(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the training settings among the settings of a stage; None for a stage without."""
    sections = [value for value in settings.values() if isinstance(value, Mapping)]
    sections += [section["training"] for section in sections if isinstance(section.get("training"), Mapping)]
    return next((section for section in sections if {"steps", "decay"} <= section.keys()), None)


def _training(determined: StageInputs) -> Training:
    section = _section(determined.settings)
    assert section is not None
    return parse(Training, dict(section))


def _with_steps(settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the settings with another number of training steps."""
    section = _section(settings)
    changed = {**section, "steps": steps} if section is not None else None
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if value is section:
            value = changed
        elif isinstance(value, Mapping) and value.get("training") is section and section is not None:
            value = {**value, "training": changed}
        result[name] = value
    return result
