"""Finetune stages: energies against the frozen denoiser, on the model that each is built on.

python -m workflows.finetune EXPERIMENT.yaml [--finetune.0.training.steps 100 ...] [--dry-run]
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edlm.checkpoints.energies import network_on, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import open_denoiser
from edlm.config import ConfigurationError, plain
from edlm.data.local_splits import local_index
from edlm.local_copies import local_copy
from workflows.autoregress import autoregress
from workflows.command import command
from workflows.experiment import Finetune
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.same_tokens import require_same_tokens
from workflows.stage import Session, StageContext, once
from workflows.training.energy_objective_factories import finetune_objective, fresh_energy
from workflows.training.initial_weights import initial_input, require_same, training_settings
from workflows.training.run import CODE as TRAINING_CODE
from workflows.training.run import run_training

CODE = (
    "workflows.finetune",
    "workflows.training.energy_objective_factories",
    "workflows.training.initial_weights",
    *TRAINING_CODE,
)


@once
def finetune(session: Session) -> dict[str, str]:
    """Train or build the energies of the experiment, unless given, and return their URIs by name."""
    energies: dict[str, str] = {}
    given = session.experiment.given.energies
    for entry in session.experiment.finetune:
        if entry.name in given:
            energies[entry.name] = session.given(f"finetune-{entry.name}", given[entry.name])
        else:
            energies[entry.name] = _make(session, entry, energies)
    return energies


def _make(session: Session, entry: Finetune, energies: Mapping[str, str]) -> str:
    """Train an energy or, if all of its weights are those of the model that it is built on, save it at once."""
    experiment, denoiser = session.experiment, pretrain(session)
    base = autoregress(session) if entry.energy.needs_autoregressive else energies.get(entry.base or "")
    inputs = {"denoiser": denoiser} | ({} if base is None else {"base": base})
    if entry.training is not None:
        inputs |= {"data": prepare(session), **initial_input(entry.training)}

    def work(work: StageContext) -> dict[str, Any] | None:
        require_same_tokens(inputs)
        opened = open_denoiser(local_copy(denoiser))
        network = network_on(entry.energy, opened, None if base is None else local_copy(base))
        facts: dict[str, Any] = {"experiment": experiment.name}

        def write(weights: Mapping[str, Tensor], folder: Path) -> None:
            # What training leaves as it is comes from the model that the energy is built on.
            whole = fresh_energy(entry, opened, base, experiment.seed).state_dict()
            for name, weight in weights.items():
                whole[name].copy_(weight)  # in place, so that no weight is in memory twice
            save_energy(folder, whole, network, opened.length, opened.folder / TOKENIZER, facts)

        if entry.training is None:
            return write({}, work.folder)
        if opened.length != experiment.data.length:
            raise ConfigurationError(
                f"data.length is {experiment.data.length}, and the denoiser in {denoiser} has a canvas of "
                f"{opened.length} tokens, on rows of which its energies are trained; set data.length to {opened.length}"
            )
        facts |= {"loss": entry.loss, "negatives": entry.negatives}
        start = inputs.get("init_from")
        separator = experiment.data.attention_separator(local_index(inputs["data"]))
        objective = functools.partial(finetune_objective, entry, denoiser, base, experiment.seed, start, separator)
        if start is not None:
            require_same(start, "energy", plain(network), local_index(inputs["data"]))
            objective()  # loads the weights here, too: an error is raised before a worker starts
        return run_training(session, work, inputs["data"], "train", entry.training, objective, write)

    section = plain(entry)
    if entry.training is not None:
        section["training"] = training_settings(entry.training)
    settings = {
        f"finetune.{entry.name}": section,
        "data.attention": experiment.data.attention,
        "seed": experiment.seed,
    }
    return session.run_stage(f"finetune-{entry.name}", settings, inputs, CODE, work)


if __name__ == "__main__":
    command(__doc__, finetune)
