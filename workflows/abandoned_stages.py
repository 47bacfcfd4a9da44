"""Runs of stages whose command was killed: each is ended as what became of its stage."""

from cluster.tracking.journal import ENTRIES, is_open
from cluster.tracking.journal_folder import JOURNAL, journals_folder
from cluster.tracking.leftovers import end, last_status
from cluster.tracking.run_record import RunRecord
from cluster.tracking.runs import Runs
from edlm.checkpoints.lease import LeaseHeld, leased, seems_held
from edlm.storage import StorageError, committed
from workflows.stage import Session, say

OUTPUT = "edlm.output"  # tag of a run: the URI of what it made


def end_abandoned_stages(session: Session, runs: Runs) -> None:
    """End the runs of stages that journals of this machine say are active, and that no process works on.

    Of a stage that another machine worked on, that is known ten minutes after its last sign of life.
    """
    for path in sorted(journals_folder(session.outputs).glob(f"*/{JOURNAL}/{ENTRIES}")):
        folder = path.parent.parent.name
        if last_status(path.parent) != "RUNNING":  # of the machine of a worker, it has none
            continue
        try:
            end_if_abandoned(session, runs, folder)
        except StorageError as error:  # of a stage that this command may have no need of
            say(folder, f"its run cannot be ended: {error}")


def end_if_abandoned(session: Session, runs: Runs, folder: str) -> None:
    """End the run of the stage in `folder`, unless it has an end or a process works on the stage."""
    workspace = session.workspace_of(folder)
    if _unended(session, runs, folder) is None or seems_held(workspace):
        return
    try:
        with leased(workspace):
            end_held(session, runs, folder)
    except LeaseHeld:
        return  # taken just now, by a command that ends the run itself


def end_held(session: Session, runs: Runs, folder: str) -> None:
    """End the run of the stage in `folder`, whose lease this command has, unless the run has an end."""
    run, output = _unended(session, runs, folder), session.output_of(folder)
    if run is None:
        return
    if committed(output) is None:
        end(session.journal_of(folder), run, "KILLED")
    else:
        end(session.journal_of(folder), run, "FINISHED", {OUTPUT: output})


def _unended(session: Session, runs: Runs, folder: str) -> RunRecord | None:
    """Return the run of a stage if it is on record and has no end, and no process writes its journal here."""
    output, journal = session.output_of(folder), session.journal_of(folder)
    record = session.run_record(folder)
    if record is None or ((journal / ENTRIES).exists() and is_open(journal)):
        return None  # `is_open`: workers of a killed command write for a moment longer
    run, finished = RunRecord.parse(record["run"]), committed(output) is not None
    status = runs.status(run, journal)
    return run if status == "RUNNING" or (finished and status not in (None, "FINISHED")) else None
