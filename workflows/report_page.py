"""The page of a report as an output: its folder, what determines it, and what its marker records of that.

Imports neither Matplotlib nor MLflow, so that a dry run starts fast.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edlm.config import plain
from edlm.storage import join
from workflows.stage import Session
from workflows.stage_fingerprint import Ingredients, ingredients

CODE = ("workflows.report", "workflows.reporting.templates", "cluster.tracking.training_curves")
"""Modules and templates that select what the page shows and draw it."""
STAGE = "report"
_FINGERPRINT, _INGREDIENTS = "fingerprint", "ingredients"  # of all that the page shows


def page_folder(session: Session) -> str:
    """Return the URI of the folder that the page is written to."""
    return session.experiment.report.folder or join(session.outputs, STAGE)


def page_ingredients(session: Session) -> Ingredients:
    """Return what determines the page: the settings, the outputs of the stages that were asked for, and its code."""
    return ingredients(STAGE, plain(session.experiment), session.stage_outputs, CODE)


def page_facts(determined: Ingredients) -> dict[str, Any]:
    """Return what a marker records of the ingredients of its page; there are no secrets in it."""
    return {_FINGERPRINT: determined.fingerprint, _INGREDIENTS: asdict(determined.public)}


def shows_the_same(facts: Mapping[str, Any], determined: Ingredients) -> bool:
    """Return whether the page whose marker has these facts is the one that the ingredients give."""
    return facts.get(_FINGERPRINT) == determined.fingerprint


def recorded_ingredients(facts: Mapping[str, Any]) -> Ingredients | None:
    """Return what a page was made of, without secrets; None if its marker does not say."""
    return Ingredients(**facts[_INGREDIENTS]) if _INGREDIENTS in facts else None
