"""Checks of all trainings of an experiment before its first stage runs: batches, and the models they start from."""

from collections.abc import Iterator, Mapping
from typing import Any

from edlm.config import ConfigurationError, plain
from edlm.training.settings import Training, share
from workflows.experiment import Experiment
from workflows.training.initial_weights import initial_input, require_card


def require_initial_models(experiment: Experiment, root: str) -> None:
    """Raise ConfigurationError, naming the setting, for a model that is not there or is unlike the one to be trained.

    `root` is the storage of the outputs: if it is a URI, which workers on other machines read, so must `init_from` be.
    What takes the data or other models to compare, the stages compare.
    """
    for section, training, expected in _trainings(experiment):
        if training is None:
            continue
        try:
            for uri in initial_input(training).values():
                if "://" in root and "://" not in uri:
                    raise ConfigurationError(
                        f"init_from: {uri} is a path of this machine, and the storage {root} is a URI, for workers on "
                        "any machine; publish the folder to a URI (edlm.storage.publish) and name that"
                    )
                require_card(uri, **expected)
        except ConfigurationError as error:
            raise ConfigurationError(f"{section}.{error}") from error


def require_batches(experiment: Experiment) -> None:
    """Raise ConfigurationError, naming the setting, for a batch that the workers cannot share evenly."""
    for section, training, _ in _trainings(experiment):
        if training is not None:
            try:
                share(training, experiment.cluster.workers)
            except ConfigurationError as error:
                raise ConfigurationError(f"{section}.batch: {error}") from error


def _trainings(experiment: Experiment) -> Iterator[tuple[str, Training | None, Mapping[str, Any]]]:
    """Yield the trainings whose models are not given, by the names of their settings, and what their cards must say."""
    given, causal = experiment.given, {"kind": "autoregressive", "network": plain(experiment.autoregressive)}
    if given.denoiser is None:
        network, schedule = plain(experiment.denoiser), plain(experiment.schedule)
        yield "pretrain", experiment.pretrain, {"kind": "denoiser", "network": network, "schedule": schedule}
    if given.autoregressive is None:
        yield "autoregress", experiment.autoregress, causal
    if given.judge is None:
        yield "judge", experiment.judge, causal
    for i, entry in enumerate(experiment.finetune):
        if entry.name not in given.energies:
            network = {"energy": plain(entry.energy)}
            if given.denoiser is None:
                network["schedule"] = plain(experiment.schedule)
            expected = {"kind": "energy", "network": network, "whole": False}
            yield f"finetune.{i}.training", entry.training, expected
