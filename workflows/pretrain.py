"""Pretrain stage: diffusion training of the denoiser.

python -m workflows.pretrain EXPERIMENT.yaml [--pretrain.steps 100 ...] [--dry-run]
"""

import functools
from typing import Any

from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import denoiser_config, save_denoiser
from edlm.config import plain
from edlm.data.local_splits import local_index
from edlm.data.token_file import read_summary
from edlm.huggingface.source import HuggingFaceSource
from edlm.local_copies import local_copy
from workflows.command import command
from workflows.import_huggingface import imported_denoiser
from workflows.prepare import prepare
from workflows.stage import Session, StageContext, once
from workflows.training.initial_weights import initial_input, require_same, training_settings
from workflows.training.objective_factories import denoising
from workflows.training.run import CODE as TRAINING_CODE
from workflows.training.run import run_training

CODE = (
    "workflows.pretrain",
    "workflows.training.objective_factories",
    "workflows.training.initial_weights",
    *TRAINING_CODE,
)


@once
def pretrain(session: Session) -> str:
    """Train the denoiser, unless one is given, and return its URI.

    A denoiser that comes with weights is trained further or, without a `pretrain` section, used as it is.
    """
    experiment = session.experiment
    if experiment.given.denoiser is not None:
        return session.given("pretrain", experiment.given.denoiser)
    imported, training = imported_denoiser(session), experiment.pretrain
    if training is None:
        assert imported is not None  # `Experiment` has checked it
        return imported
    data = prepare(session)
    schedule, length, seed = experiment.schedule, experiment.data.length, experiment.seed
    initial = initial_input(training) if imported is None else {"init_from": imported}

    def work(work: StageContext) -> dict[str, Any]:
        prepared = local_index(data)
        start = initial.get("init_from")
        network = experiment.denoiser if imported is None else denoiser_config(local_copy(imported))
        assert not isinstance(network, HuggingFaceSource)
        if start is not None:
            require_same(start, "denoiser", plain(network), prepared, plain(schedule))
        summary, separator = read_summary(prepared), experiment.data.attention_separator(prepared)
        build = functools.partial(
            denoising, network, summary.vocabulary, schedule, seed, start, separator, training.lora
        )

        def write(weights, folder):
            facts = {"experiment": experiment.name, **summary.facts()}
            save_denoiser(folder, weights, network, schedule, length, prepared / TOKENIZER, facts)

        return run_training(session, work, data, "train", training, build, write)

    settings = {
        "denoiser": plain(experiment.denoiser),
        "schedule": plain(schedule),
        "pretrain": training_settings(training),
        "data.length": length,
        "data.attention": experiment.data.attention,
        "seed": seed,
    }
    return session.run_stage("pretrain", settings, {"data": data, **initial}, CODE, work)


if __name__ == "__main__":
    command(__doc__, pretrain)
