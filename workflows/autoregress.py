"""Autoregress stages: the autoregressive baseline, and the judge on documents of its own.

python -m workflows.autoregress EXPERIMENT.yaml [--autoregress.steps 100 ...]
"""

import functools
from typing import Any

from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import save_autoregressive
from edlm.config import from_command_line, plain
from edlm.data.packing import Split
from edlm.data.token_file import read_summary
from edlm.storage import local_copy
from edlm.training.settings import Training
from workflows.experiment import Experiment
from workflows.prepare import prepare
from workflows.stage import Session, StageContext, session
from workflows.training.objectives import next_token
from workflows.training.run import CODE as TRAINING_CODE
from workflows.training.run import run_training

CODE = ("workflows.autoregress", "workflows.training.objectives", *TRAINING_CODE)


def autoregress(session: Session, data: str) -> str:
    """Train the baseline, also the source of the energies `ar` and `coar`, unless given, and return its URI."""
    if (given := session.experiment.given.autoregressive) is not None:
        return session.given("autoregress", given)
    return _next_token(session, data, "autoregress", "train", session.experiment.autoregress)


def judge(session: Session, data: str) -> str:
    """Train the judge, the same network on the judge's split, unless one is given, and return its URI."""
    if (given := session.experiment.given.judge) is not None:
        return session.given("judge", given)
    return _next_token(session, data, "judge", "judge", session.experiment.judge)


def _next_token(session: Session, data: str, stage: str, split: Split, training: Training) -> str:
    experiment = session.experiment
    trunk, length, seed = experiment.autoregressive, experiment.data.length, experiment.seed

    def work(work: StageContext) -> dict[str, Any]:
        prepared = local_copy(data)
        build = functools.partial(next_token, trunk, read_summary(prepared).vocabulary, seed)

        def write(weights, folder):
            save_autoregressive(folder, weights, trunk, length, prepared / TOKENIZER, {"experiment": experiment.name})

        return run_training(session, work, data, split, training, build, write)

    settings = {"trunk": plain(trunk), "training": plain(training), "length": length, "seed": seed}
    return session.run_stage(stage, settings, {"data": data}, CODE, work)


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    with session(experiment) as opened:
        data = prepare(opened)
        autoregress(opened, data)
        judge(opened, data)


if __name__ == "__main__":
    main()
