"""Register stage: the denoiser and its energies as one bundle, under a name and an alias in the model registry.

python -m workflows.register EXPERIMENT.yaml [--register.energy step ...] [--dry-run]
"""

from typing import TYPE_CHECKING, Any

from edlm.config import plain
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.storage import committed, local_copy
from workflows.command import command
from workflows.finetune import finetune
from workflows.pretrain import pretrain
from workflows.stage import Session, StageContext, once, say

if TYPE_CHECKING:
    from cluster.tracking.model_version import ModelVersion
    from workflows.stage_runner import RunningSession

CODE = ("workflows.register",)


@once
def bundle(session: Session) -> str:
    """Put the denoiser and all energies into one bundle and return its URI."""
    settings, denoiser, energies = session.experiment.register, pretrain(session), finetune(session)

    def work(work: StageContext) -> dict[str, Any]:
        card = Bundle(name=settings.model, energy=settings.energy, sampler=settings.sampler)
        folders = {name: local_copy(uri) for name, uri in energies.items()}
        save_bundle(work.folder, card, local_copy(denoiser), folders)
        return {"run_id": work.run_id}

    inputs = {"denoiser": denoiser} | {f"energy {name}": uri for name, uri in energies.items()}
    return session.run_stage("register", {"register": plain(settings)}, inputs, CODE, work)


def register(session: "RunningSession") -> "ModelVersion":
    """Register the bundle, point the alias at it and return the version; the same models are the same version."""
    experiment, settings, uri = session.experiment, session.experiment.register, bundle(session)
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


if __name__ == "__main__":
    command(__doc__, bundle, register)
