"""Finetune: the energies, each against the frozen denoiser; `ar` and `coar` are read off the autoregressive model.

python -m workflows.finetune EXPERIMENT.yaml [--finetune.0.training.steps 100 ...]
"""

import functools
from typing import Any

from edlm.checkpoint import TOKENIZER
from edlm.config import from_command_line, plain
from edlm.models import EnergyNetwork, open_autoregressive, open_denoiser, save_energy
from edlm.storage import local_copy
from workflows.autoregress import autoregress
from workflows.experiment import Experiment, Finetune
from workflows.objectives import contrasting
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.stage import Session, Work, session
from workflows.train import run_training


def finetune(session: Session, data: str, denoiser: str, autoregressive: str) -> dict[str, str]:
    """The URIs of all energies of the experiment, by name."""
    return {
        one.name: _borrow(session, one, denoiser, autoregressive)
        if one.training is None
        else _train(session, one, data, denoiser)
        for one in session.experiment.finetune
    }


def _train(session: Session, one: Finetune, data: str, denoiser: str) -> str:
    experiment = session.experiment
    training = one.training
    assert training is not None

    def work(work: Work) -> dict[str, Any]:
        base = open_denoiser(local_copy(denoiser))
        network = EnergyNetwork(energy=one.energy, denoiser_digest=base.digest)
        build = functools.partial(contrasting, one, denoiser, experiment.seed)

        def write(weights, folder):
            facts = {"experiment": experiment.name, "loss": one.loss, "negatives": one.negatives}
            save_energy(folder, weights, network, base.length, base.folder / TOKENIZER, facts)

        return run_training(session, work, data, "train", training, build, write)

    settings = {**plain(one), "seed": experiment.seed}
    return session.run_stage(f"finetune-{one.name}", settings, {"data": data, "denoiser": denoiser}, work)


def _borrow(session: Session, one: Finetune, denoiser: str, autoregressive: str) -> str:
    """An energy that needs no training: the autoregressive model's weights under the energy's name."""

    def work(work: Work) -> None:
        base, folder = open_denoiser(local_copy(denoiser)), local_copy(autoregressive)
        model = open_autoregressive(folder)
        network = EnergyNetwork(energy=one.energy, denoiser_digest=base.digest, autoregressive=model.trunk)
        weights = one.energy.build(base.network, model).state_dict()
        facts = {"experiment": session.experiment.name}
        save_energy(work.folder, weights, network, base.length, base.folder / TOKENIZER, facts)

    inputs = {"denoiser": denoiser, "autoregressive": autoregressive}
    return session.run_stage(f"finetune-{one.name}", plain(one), inputs, work)


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    with session(experiment) as opened:
        data = prepare(opened)
        finetune(opened, data, pretrain(opened, data), autoregress(opened, data))


if __name__ == "__main__":
    main()
