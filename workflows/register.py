"""Register stage: the denoiser and its energies as one bundle, under a name and an alias in the model registry.

python -m workflows.register EXPERIMENT.yaml [--register.energy step ...]
"""

from collections.abc import Mapping
from typing import Any

from cluster.tracking.registry import ModelVersion
from edlm.config import from_command_line, plain
from edlm.inference.generator import Bundle, save_bundle
from edlm.storage import committed, local_copy
from workflows.autoregress import autoregress, judge
from workflows.evaluate import evaluate
from workflows.experiment import Experiment
from workflows.finetune import finetune
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.stage import Session, StageContext, say, session

CODE = ("workflows.register",)


def register(session: Session, denoiser: str, energies: Mapping[str, str], measured: str) -> ModelVersion:
    """Register the bundle, point the alias at it and return the version; the same models are the same version."""
    experiment = session.experiment
    settings = experiment.register

    def work(work: StageContext) -> dict[str, Any]:
        bundle = Bundle(name=settings.model, energy=settings.energy, sampler=settings.sampler)
        folders = {name: local_copy(uri) for name, uri in energies.items()}
        save_bundle(work.folder, bundle, local_copy(denoiser), folders)
        return {"run_id": work.run_id}

    inputs = {"denoiser": denoiser, "measured": measured} | {f"energy {name}": uri for name, uri in energies.items()}
    uri = session.run_stage("register", plain(settings), inputs, CODE, work)
    marker = committed(uri)
    assert marker is not None
    version = session.runs.registry.register(
        settings.model, uri, str(marker.facts["run_id"]), experiment.serving.alias, marker.digest
    )
    say(
        "register",
        f"{settings.model} version {version.version} is {experiment.serving.alias!r}, digest {marker.digest[:12]}",
    )
    return version


def main() -> None:
    experiment = from_command_line(Experiment, description=__doc__)
    with session(experiment) as opened:
        data = prepare(opened)
        denoiser, autoregressive, judging = pretrain(opened, data), autoregress(opened, data), judge(opened, data)
        energies = finetune(opened, data, denoiser, autoregressive)
        register(opened, denoiser, energies, evaluate(opened, data, denoiser, autoregressive, judging, energies))


if __name__ == "__main__":
    main()
