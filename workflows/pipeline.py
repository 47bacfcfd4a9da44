"""Pipeline: all stages from text to a running endpoint; a finished stage is not run again.

python -m workflows.pipeline EXPERIMENT.yaml [--pretrain.steps 100 ...]
"""

import time

from edlm.config import from_command_line
from edlm.storage import join, local_copy
from workflows.autoregress import autoregress, judge
from workflows.evaluate import evaluate, shown
from workflows.experiment import Experiment
from workflows.finetune import finetune
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.register import register
from workflows.report import HTML, report
from workflows.serve import ask, require_keyed
from workflows.stage import mistakes_told, session


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    started = time.monotonic()
    with mistakes_told():
        require_keyed(experiment)
    with session(experiment, pipeline=experiment.name) as opened:
        data = prepare(opened)
        denoiser = pretrain(opened, data)
        autoregressive, judging = autoregress(opened, data), judge(opened, data)
        energies = finetune(opened, data, denoiser, autoregressive)
        measured = evaluate(opened, data, denoiser, autoregressive, judging, energies)
        register(opened, denoiser, energies, measured)
        page = report(opened, measured)
        answered = ask(opened)
        results = local_copy(measured)
    print()
    print(shown(results))
    print(f"\nfigures: {results}/bounds.png  {results}/quality.png")
    print(f"the report, with every figure: {join(page, HTML)}")
    print("browse the runs: make ui, then http://127.0.0.1:5000")
    status = "has started" if answered.text is None else f"answered: {answered.text!r}"
    print(f"the endpoint {status}\nto ask it (make serve keeps it up):\n  {answered.curl}")
    print(f"\nall stages in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
