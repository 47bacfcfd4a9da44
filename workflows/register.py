"""Register stage: the denoiser and its energies as one bundle, under a name and an alias in the model registry.

python -m workflows.register EXPERIMENT.yaml [--register.energy step ...] [--dry-run]
"""

from pathlib import Path
from typing import TYPE_CHECKING

from edlm.config import plain
from edlm.data.corpus import holds_conversations
from edlm.data.excerpts import excerpts
from edlm.data.local_splits import local_split
from edlm.data.token_file import read_summary
from edlm.inference.components import Bundle, DataCard
from edlm.inference.generator import save_bundle
from edlm.local_copies import local_copy
from edlm.storage import committed
from workflows.command import command
from workflows.experiment import Experiment
from workflows.finetune import finetune
from workflows.prepare import prepare
from workflows.pretrain import pretrain
from workflows.stage import Session, StageContext, once, say

if TYPE_CHECKING:
    from cluster.tracking.model_version import ModelVersion
    from workflows.stage_runner import RunningSession

CODE = ("workflows.register",)
EXAMPLE_TOKENS = 256  # most tokens of an example


@once
def bundle(session: Session) -> str:
    """Put the denoiser and all energies into one bundle and return its URI."""
    experiment, denoiser, energies = session.experiment, pretrain(session), finetune(session)
    settings = experiment.register
    trained_here = experiment.pretrain is not None and experiment.given.denoiser is None
    data = {"data": prepare(session)} if trained_here else {}

    def work(work: StageContext) -> None:
        known = data_card(experiment, local_split(data["data"], "validation")) if data else None
        card = Bundle(name=settings.model, energy=settings.energy, sampler=settings.sampler, data=known)
        folders = {name: local_copy(uri) for name, uri in energies.items()}
        save_bundle(work.folder, card, local_copy(denoiser), folders)

    inputs = {"denoiser": denoiser} | {f"energy {name}": uri for name, uri in energies.items()} | data
    return session.run_stage("register", {"register": plain(settings)}, inputs, CODE, work)


def data_card(experiment: Experiment, prepared: Path) -> DataCard:
    """Return what the bundle says of the data and the training of a denoiser that this experiment trains.

    Conversations have no excerpts: without the special tokens of their template, a beginning is none of the data.
    """
    data, training = experiment.data, experiment.pretrain
    assert training is not None
    count = 0 if holds_conversations(data.corpus) else experiment.register.examples
    return DataCard(
        corpus=data.corpus.kind,
        tokens=read_summary(prepared).splits["train"].tokens,
        steps=training.steps,
        examples=excerpts(prepared, "validation", count, min(data.length, EXAMPLE_TOKENS)) if count else (),
    )


def register(session: "RunningSession") -> "ModelVersion":
    """Register the bundle, point the alias at it and return the version; the same models are the same version."""
    experiment, settings, uri = session.experiment, session.experiment.register, bundle(session)
    marker = committed(uri)
    assert marker is not None
    run_id = session.runs.settled(session.run_of(uri), "register")
    version = session.runs.registry.register(settings.model, uri, run_id, experiment.serving.alias, marker.digest)
    say(
        "register",
        f"{settings.model} version {version.version} is {experiment.serving.alias!r}, digest {marker.digest[:12]}",
    )
    return version


if __name__ == "__main__":
    command(__doc__, bundle, register)
