"""Pipeline: from text to a running endpoint; a finished stage is not run again, and none runs that nothing needs.

python -m workflows.pipeline EXPERIMENT.yaml [--pretrain.steps 100 ...] [--dry-run]

Each stage asks for the outputs that it is made of:

    prepare      text                                 -> token files
    pretrain     token files                          -> denoiser
    autoregress  token files                          -> autoregressive baseline; and the judge, on documents of its own
    finetune     token files, denoiser                -> each energy; `ar` and `coar` of the autoregressive baseline
    evaluate     data, denoiser, energies, and the baseline and the judge if there are any -> measurements
    register     denoiser, energies                   -> model in the registry
    report       measurements                         -> page
    serve        model in the registry                -> endpoint

The experiment says what is wanted: its energies are trained, what its `evaluate` section asks for is measured, and its
model is registered and served.
"""

import importlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edlm.local_copies import local_copy
from edlm.storage import join
from workflows.command import experiment_from
from workflows.dry_run import DryRun, dry_run
from workflows.evaluate import evaluate, shown
from workflows.register import bundle, register
from workflows.stage import Session, say, user_errors

if TYPE_CHECKING:
    from workflows.serve import Answer

SERVE = "workflows.serve"


def main() -> None:
    experiment, dry = experiment_from(__doc__)
    if dry:
        dry_run(experiment, stages)
        return
    # Deferred: importing Ray, MLflow and Matplotlib takes seconds, which a dry run does without.
    from workflows.key_check import require_keyed
    from workflows.stage_runner import open_session

    started = time.monotonic()
    with user_errors():
        require_keyed(experiment)
    # Imported while Ray starts, most of which is waiting for its processes.
    importing = threading.Thread(target=importlib.import_module, args=(SERVE,), name="imports")
    importing.start()
    with open_session(experiment, pipeline=experiment.name) as session:
        importing.join()
        from workflows.serve import query_example, start

        measured = measure(session)
        register(session)
        url = start(session)  # replicas load the model while the report is drawn
        from workflows.report import HTML, report

        page = None if measured is None else report(session)
        answer = query_example(session, url)
        results = None if measured is None else local_copy(measured)
    print(summary(results, None if page is None else join(page, HTML), answer))
    print(f"\nall stages in {time.monotonic() - started:.0f} s")


def measure(session: Session) -> str | None:
    """Return the URI of the evaluation, or None if the experiment asks for none."""
    return None if session.experiment.evaluate is None else evaluate(session)


def stages(session: DryRun) -> None:
    """Ask for every stage of the pipeline, the page of the report and the endpoint, which is started each time."""
    measured = measure(session)
    bundle(session)
    if measured is not None:
        session.report()
    say("serve", "runs: the endpoint is started each time")


def summary(results: Path | None, page: str | None, answer: "Answer") -> str:
    """Return what the command ends with: the measurements, the URI of the page, and the endpoint's answer."""
    lines = []
    if results is not None and page is not None:
        figures = "  ".join(str(path) for path in sorted(results.glob("*.png")))
        lines += ["", shown(results), f"\nfigures: {figures}"]
        lines += [f"the report, with every figure: {page}"]
    status = "has started" if answer.text is None else f"answered: {answer.text!r}"
    lines += ["browse the runs: make ui, then http://127.0.0.1:5000"]
    lines += [f"the endpoint {status}\nto ask it (make serve keeps it up):\n  {answer.curl}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
