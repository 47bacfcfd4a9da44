"""Pretrain stage: diffusion training of the denoiser.

python -m workflows.pretrain EXPERIMENT.yaml [--pretrain.steps 100 ...]
"""

import functools
from typing import Any

from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import save_denoiser
from edlm.config import from_command_line, plain
from edlm.data.token_file import read_summary
from edlm.storage import local_copy
from workflows.experiment import Experiment
from workflows.prepare import prepare
from workflows.stage import Session, StageContext, session
from workflows.training.objectives import denoising
from workflows.training.run import CODE as TRAINING_CODE
from workflows.training.run import run_training

CODE = ("workflows.pretrain", "workflows.training.objectives", *TRAINING_CODE)


def pretrain(session: Session, data: str) -> str:
    """Train the denoiser, unless one is given, and return its URI."""
    experiment = session.experiment
    if experiment.given.denoiser is not None:
        return session.given("pretrain", experiment.given.denoiser)
    trunk, schedule, length, seed = experiment.denoiser, experiment.schedule, experiment.data.length, experiment.seed

    def work(work: StageContext) -> dict[str, Any]:
        prepared = local_copy(data)
        build = functools.partial(denoising, trunk, read_summary(prepared).vocabulary, schedule, seed)

        def write(weights, folder):
            save_denoiser(
                folder, weights, trunk, schedule, length, prepared / TOKENIZER, {"experiment": experiment.name}
            )

        return run_training(session, work, data, "train", experiment.pretrain, build, write)

    settings = {
        "trunk": plain(trunk),
        "schedule": plain(schedule),
        "training": plain(experiment.pretrain),
        "length": length,
        "seed": seed,
    }
    return session.run_stage("pretrain", settings, {"data": data}, CODE, work)


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    with session(experiment) as opened:
        pretrain(opened, prepare(opened))


if __name__ == "__main__":
    main()
