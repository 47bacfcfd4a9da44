"""The page of a report as an output: its folder, what determines it, and what its marker records of that.

Imports neither Matplotlib nor MLflow, so that a dry run starts fast.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edlm.config import plain
from edlm.storage import join
from workflows.stage import Session
from workflows.stage_fingerprint import StageInputs, stage_inputs

CODE = ("workflows.report", "workflows.reporting.templates", "cluster.tracking.training_curves")
"""Modules and templates that select what the page shows and draw it."""
STAGE = "report"
_FINGERPRINT, _INPUTS = "fingerprint", "ingredients"  # of all that the page shows


def page_folder(session: Session) -> str:
    """Return the URI of the folder that the page is written to."""
    return session.experiment.report.folder or join(session.outputs, STAGE)


def page_inputs(session: Session) -> StageInputs:
    """Return what determines the page: the settings, the outputs of the stages that were asked for, and its code."""
    return stage_inputs(STAGE, plain(session.experiment), session.stage_outputs, CODE)


def page_facts(determined: StageInputs) -> dict[str, Any]:
    """Return what a marker records of the inputs of its page; there are no secrets in it."""
    return {_FINGERPRINT: determined.fingerprint, _INPUTS: asdict(determined.public)}


def shows_the_same(facts: Mapping[str, Any], determined: StageInputs) -> bool:
    """Return whether the page whose marker has these facts is the one that the inputs give."""
    return facts.get(_FINGERPRINT) == determined.fingerprint


def recorded_inputs(facts: Mapping[str, Any]) -> StageInputs | None:
    """Return what a page was made of, without secrets; None if its marker does not say."""
    return StageInputs(**facts[_INPUTS]) if _INPUTS in facts else None
