"""Command of a stage: run it and what it needs, or with `--dry-run` only say what would run, and why."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from edlm.config import from_command_line
from workflows.dry_run import DryRun, dry_run
from workflows.experiment import Experiment
from workflows.stage import Session

if TYPE_CHECKING:
    from workflows.stage_runner import RunningSession

DRY_RUN = "--dry-run"


def command(
    description: str | None,
    stage: "Callable[[Session], object]",
    then: "Callable[[RunningSession], object] | None" = None,
    planned: Callable[[DryRun], object] | None = None,
) -> None:
    """Run a stage for the experiment on the command line, and `then` what follows it.

    A dry run asks for the stage alone, or for what is `planned`.
    """
    experiment, dry = experiment_from(description)
    if dry:
        dry_run(experiment, planned or stage)
        return
    from workflows.stage_runner import open_session  # deferred: importing Ray and MLflow takes seconds

    with open_session(experiment) as session:
        stage(session)
        if then is not None:
            then(session)


def experiment_from(description: str | None) -> tuple[Experiment, bool]:
    """Return the experiment of the command line, and whether a dry run is asked for."""
    arguments = [argument for argument in sys.argv[1:] if argument != DRY_RUN]
    return from_command_line(Experiment, arguments, description), len(arguments) < len(sys.argv) - 1
