"""Autoregress stages: the autoregressive baseline, and the judge on documents of its own.

python -m workflows.autoregress EXPERIMENT.yaml [--autoregress.steps 100 ...] [--dry-run]
"""

import functools
from typing import Any

from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import autoregressive_config, save_autoregressive
from edlm.config import ConfigurationError, plain
from edlm.data.local_splits import local_index
from edlm.data.preparation import Split
from edlm.data.token_file import read_summary
from edlm.huggingface.source import HuggingFaceSource
from edlm.local_copies import local_copy
from edlm.training.settings import Training
from workflows.command import command
from workflows.import_huggingface import imported_autoregressive
from workflows.prepare import prepare
from workflows.stage import Session, StageContext, once
from workflows.training.initial_weights import initial_input, require_same, training_settings
from workflows.training.objective_factories import next_token
from workflows.training.run import CODE as TRAINING_CODE
from workflows.training.run import run_training

CODE = (
    "workflows.autoregress",
    "workflows.training.objective_factories",
    "workflows.training.initial_weights",
    *TRAINING_CODE,
)


@once
def autoregress(session: Session) -> str | None:
    """Train the baseline, also the source of the energies `ar` and `coar`, unless given, and return its URI.

    One that comes with weights is trained further or, without an `autoregress` section, used as it is. None if there is
    neither.
    """
    if (given := session.experiment.given.autoregressive) is not None:
        return session.given("autoregress", given)
    training = session.experiment.autoregress
    if training is None:
        return imported_autoregressive(session)
    return _next_token(session, "autoregress", "train", training)


@once
def judge(session: Session) -> str | None:
    """Train the judge, the same network on the judge's split, unless one is given, and return its URI.

    None without a `judge` section.
    """
    if (given := session.experiment.given.judge) is not None:
        return session.given("judge", given)
    training = session.experiment.judge
    return None if training is None else _next_token(session, "judge", "judge", training)


def baseline_and_judge(session: Session) -> None:
    """Train both; raise ConfigurationError if the experiment has neither."""
    if (autoregress(session), judge(session)) == (None, None):
        raise ConfigurationError("autoregress: there is neither an `autoregress` nor a `judge` section; add one")


def _next_token(session: Session, stage: str, split: Split, training: Training) -> str:
    experiment, data = session.experiment, prepare(session)
    length, seed, imported = experiment.data.length, experiment.seed, imported_autoregressive(session)
    initial = initial_input(training) if imported is None else {"init_from": imported}

    def work(work: StageContext) -> dict[str, Any]:
        prepared = local_index(data)
        start = initial.get("init_from")
        network = experiment.autoregressive if imported is None else autoregressive_config(local_copy(imported))
        assert not isinstance(network, HuggingFaceSource)
        if start is not None:
            require_same(start, "autoregressive", plain(network), prepared)
        vocabulary, separator = read_summary(prepared).vocabulary, experiment.data.attention_separator(prepared)
        build = functools.partial(next_token, network, vocabulary, seed, start, separator, training.lora)

        def write(weights, folder):
            save_autoregressive(folder, weights, network, length, prepared / TOKENIZER, {"experiment": experiment.name})

        return run_training(session, work, data, split, training, build, write)

    settings = {
        "autoregressive": plain(experiment.autoregressive),
        stage: training_settings(training),
        "data.length": length,
        "data.attention": experiment.data.attention,
        "seed": seed,
    }
    return session.run_stage(stage, settings, {"data": data, **initial}, CODE, work)


if __name__ == "__main__":
    command(__doc__, baseline_and_judge)
