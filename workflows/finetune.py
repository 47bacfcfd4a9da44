"""Finetune stages: energies against the frozen denoiser; `ar` and `coar` are built on the autoregressive model.

python -m workflows.finetune EXPERIMENT.yaml [--finetune.0.training.steps 100 ...] [--dry-run]
"""

import functools
from typing import Any

from edlm.checkpoints.energies import EnergyNetwork, open_energy, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import open_autoregressive, open_denoiser
from edlm.config import plain
from edlm.storage import local_copy
from workflows.autoregress import autoregress
from workflows.command import command
from workflows.experiment import Finetune
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.stage import Session, StageContext, once
from workflows.training.energy_objectives import finetune_objective
from workflows.training.run import CODE as TRAINING_CODE
from workflows.training.run import run_training

CODE = ("workflows.finetune", "workflows.training.energy_objectives", *TRAINING_CODE)


@once
def finetune(session: Session) -> dict[str, str]:
    """Train or build the energies of the experiment, unless given, and return their URIs by name."""
    energies: dict[str, str] = {}
    given = session.experiment.given.energies
    for entry in session.experiment.finetune:
        if entry.name in given:
            energies[entry.name] = session.given(f"finetune-{entry.name}", given[entry.name])
        elif entry.training is None:
            energies[entry.name] = _borrow(session, entry)
        else:
            energies[entry.name] = _train(session, entry, None if entry.base is None else energies[entry.base])
    return energies


def _train(session: Session, entry: Finetune, proposal: str | None) -> str:
    experiment, training = session.experiment, entry.training
    data, denoiser = prepare(session), pretrain(session)
    assert training is not None

    def work(work: StageContext) -> dict[str, Any]:
        base = open_denoiser(local_copy(denoiser))
        proposal_energy = None if proposal is None else open_energy(local_copy(proposal), base)
        base_energy = next((other.energy for other in experiment.finetune if other.name == entry.base), None)
        network = EnergyNetwork(energy=entry.energy, denoiser_digest=base.digest, base=base_energy)
        build = functools.partial(finetune_objective, entry, denoiser, proposal, experiment.seed)

        def write(weights, folder):
            facts = {"experiment": experiment.name, "loss": entry.loss, "negatives": entry.negatives}
            frozen = (
                {}
                if proposal_energy is None
                else {f"proposal.{name}": tensor for name, tensor in proposal_energy.state_dict().items()}
            )
            save_energy(folder, {**weights, **frozen}, network, base.length, base.folder / TOKENIZER, facts)

        return run_training(session, work, data, "train", training, build, write)

    inputs = {"data": data, "denoiser": denoiser} | ({} if proposal is None else {"proposal": proposal})
    settings = {f"finetune.{entry.name}": plain(entry), "seed": experiment.seed}
    return session.run_stage(f"finetune-{entry.name}", settings, inputs, CODE, work)


def _borrow(session: Session, entry: Finetune) -> str:
    """Save an energy that needs no training: the autoregressive model's weights under the energy's name."""
    denoiser, autoregressive = pretrain(session), autoregress(session)
    assert autoregressive is not None  # `Experiment` requires one for such an energy

    def work(work: StageContext) -> None:
        base, folder = open_denoiser(local_copy(denoiser)), local_copy(autoregressive)
        model = open_autoregressive(folder)
        network = EnergyNetwork(energy=entry.energy, denoiser_digest=base.digest, autoregressive=model.trunk)
        weights = entry.energy.build(base.network, model).state_dict()
        facts = {"experiment": session.experiment.name}
        save_energy(work.folder, weights, network, base.length, base.folder / TOKENIZER, facts)

    inputs = {"denoiser": denoiser, "autoregressive": autoregressive}
    settings = {f"finetune.{entry.name}": plain(entry)}
    return session.run_stage(f"finetune-{entry.name}", settings, inputs, CODE, work)


if __name__ == "__main__":
    command(__doc__, finetune)
