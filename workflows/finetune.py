"""Finetune stages: energies against the frozen denoiser; `ar` and `coar` are built on the autoregressive model.

python -m workflows.finetune EXPERIMENT.yaml [--finetune.0.training.steps 100 ...]
"""

import functools
from typing import Any

from edlm.checkpoints.energies import EnergyNetwork, open_energy, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import open_autoregressive, open_denoiser
from edlm.config import from_command_line, plain
from edlm.storage import local_copy
from workflows.autoregress import autoregress
from workflows.experiment import Experiment, Finetune
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.stage import Session, StageContext, session
from workflows.training.energy_objectives import contrasting
from workflows.training.run import CODE as TRAINING_CODE
from workflows.training.run import run_training

CODE = ("workflows.finetune", "workflows.training.energy_objectives", *TRAINING_CODE)


def finetune(session: Session, data: str, denoiser: str, autoregressive: str) -> dict[str, str]:
    """Train or build the energies of the experiment, unless given, and return their URIs by name."""
    energies: dict[str, str] = {}
    given = session.experiment.given.energies
    for entry in session.experiment.finetune:
        if entry.name in given:
            energies[entry.name] = session.given(f"finetune-{entry.name}", given[entry.name])
        elif entry.training is None:
            energies[entry.name] = _borrow(session, entry, denoiser, autoregressive)
        else:
            base = None if entry.base is None else energies[entry.base]
            energies[entry.name] = _train(session, entry, data, denoiser, base)
    return energies


def _train(session: Session, one: Finetune, data: str, denoiser: str, proposal: str | None) -> str:
    experiment = session.experiment
    training = one.training
    assert training is not None

    def work(work: StageContext) -> dict[str, Any]:
        base = open_denoiser(local_copy(denoiser))
        proposal_energy = None if proposal is None else open_energy(local_copy(proposal), base)
        base_energy = next((other.energy for other in experiment.finetune if other.name == one.base), None)
        network = EnergyNetwork(energy=one.energy, denoiser_digest=base.digest, base=base_energy)
        build = functools.partial(contrasting, one, denoiser, proposal, experiment.seed)

        def write(weights, folder):
            facts = {"experiment": experiment.name, "loss": one.loss, "negatives": one.negatives}
            frozen = (
                {}
                if proposal_energy is None
                else {f"proposal.{name}": tensor for name, tensor in proposal_energy.state_dict().items()}
            )
            save_energy(folder, {**weights, **frozen}, network, base.length, base.folder / TOKENIZER, facts)

        return run_training(session, work, data, "train", training, build, write)

    inputs = {"data": data, "denoiser": denoiser} | ({} if proposal is None else {"proposal": proposal})
    return session.run_stage(f"finetune-{one.name}", {**plain(one), "seed": experiment.seed}, inputs, CODE, work)


def _borrow(session: Session, one: Finetune, denoiser: str, autoregressive: str) -> str:
    """Save an energy that needs no training: the autoregressive model's weights under the energy's name."""

    def work(work: StageContext) -> None:
        base, folder = open_denoiser(local_copy(denoiser)), local_copy(autoregressive)
        model = open_autoregressive(folder)
        network = EnergyNetwork(energy=one.energy, denoiser_digest=base.digest, autoregressive=model.trunk)
        weights = one.energy.build(base.network, model).state_dict()
        facts = {"experiment": session.experiment.name}
        save_energy(work.folder, weights, network, base.length, base.folder / TOKENIZER, facts)

    inputs = {"denoiser": denoiser, "autoregressive": autoregressive}
    return session.run_stage(f"finetune-{one.name}", plain(one), inputs, CODE, work)


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    with session(experiment) as opened:
        data = prepare(opened)
        finetune(opened, data, pretrain(opened, data), autoregress(opened, data))


if __name__ == "__main__":
    main()
