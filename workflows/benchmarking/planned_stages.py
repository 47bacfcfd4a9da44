"""What an experiment would train and measure, from networks on the meta device, which have shapes and no weights."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from edlm.config import ConfigurationError
from edlm.data.synthetic import AbstractSource
from edlm.data.tokenizer_kinds import BPE
from edlm.evaluation.judge_models import TrainedJudge
from edlm.huggingface.source import HuggingFaceSource
from edlm.interfaces import AbstractEnergy, Model
from edlm.models.autoregressive import AbstractAutoregressiveModel
from edlm.models.denoiser import AbstractDenoiser
from edlm.planning.training_memory import TrainingWork
from edlm.planning.training_work import training_work
from edlm.training.energy_objectives import energy_objective
from edlm.training.interfaces import Objective
from edlm.training.objectives import Denoising, NextToken
from edlm.training.settings import Training
from workflows.experiment import Experiment


@dataclass(frozen=True)
class PlannedStage:
    """Training of a stage, and the work of a step; None for a network whose work is not known."""

    name: str
    training: Training
    work: TrainingWork | None


class MetaModels:
    """The networks of an experiment on the meta device."""

    def __init__(self, experiment: Experiment, vocabulary: int) -> None:
        self.experiment = experiment
        # Which id it is makes no difference to the work.
        self.separator = 0 if experiment.data.attention == "within_documents" else None
        with torch.device("meta"):
            self.denoiser, self.autoregressive = _networks(experiment, vocabulary)
            self.energies: dict[str, AbstractEnergy] = {}
            for entry in experiment.finetune:
                base = self.autoregressive if entry.energy.needs_autoregressive else self.energies.get(entry.base or "")
                self.energies[entry.name] = entry.energy.build(self.denoiser, base)

    def stages(self) -> Iterator[PlannedStage]:
        """Yield the stages that train, in their order; models that are given are not trained."""
        experiment, given = self.experiment, self.experiment.given
        if experiment.pretrain is not None and given.denoiser is None:
            objective = Denoising(self.denoiser, experiment.schedule, experiment.seed, self.separator)
            yield self._stage("pretrain", experiment.pretrain, objective)
        for name, training, folder in (
            ("autoregress", experiment.autoregress, given.autoregressive),
            ("judge", experiment.judge, given.judge),
        ):
            if training is not None and folder is None:
                yield self._stage(name, training, NextToken(self.autoregressive, self.separator))
        for entry in experiment.finetune:
            if entry.training is not None and entry.name not in given.energies:
                model = Model(self.denoiser, self.energies[entry.name], experiment.schedule)
                objective = energy_objective(
                    model, entry.negatives, entry.loss, experiment.seed, entry.largest_grid, self.separator
                )
                yield self._stage(f"finetune-{entry.name}", entry.training, objective)

    def measurements(self) -> tuple[int, int]:
        """Return how many measurements run side by side, and how many alone, before those of fitted grids."""
        from workflows.evaluation.grid import measurements  # deferred: scikit-learn takes seconds

        experiment, settings = self.experiment, self.experiment.evaluate
        if settings is None:
            return 0, 0
        judge = experiment.judge_config
        corpus = experiment.data.corpus
        subject = _subject(experiment, judge == TrainedJudge(), corpus if isinstance(corpus, AbstractSource) else None)
        together, alone = measurements(experiment, replace(settings, judge=judge), subject, self.energies)
        return len(together), len(alone)

    def _stage(self, name: str, training: Training, objective: Objective) -> PlannedStage:
        return PlannedStage(name, training, training_work(objective, training.batch, self.experiment.data.length))


def vocabulary_of(experiment: Experiment) -> int:
    """Return the number of tokens; reads an existing tokenizer, and trains none."""
    tokenizer = experiment.data.tokenizer
    return tokenizer.size if isinstance(tokenizer, BPE) else tokenizer.build([]).size


def _networks(experiment: Experiment, vocabulary: int) -> tuple[AbstractDenoiser, AbstractAutoregressiveModel]:
    for name, network in (("denoiser", experiment.denoiser), ("autoregressive", experiment.autoregressive)):
        if isinstance(network, HuggingFaceSource):
            raise ConfigurationError(
                f"{name}.kind: huggingface, whose size only its files tell; plan a network of kind transformer of its "
                "width and layers"
            )
    assert not isinstance(experiment.denoiser, HuggingFaceSource)
    assert not isinstance(experiment.autoregressive, HuggingFaceSource)
    return experiment.denoiser.build(vocabulary), experiment.autoregressive.build(vocabulary)


def _subject(experiment: Experiment, has_judge: bool, source: AbstractSource | None):
    from workflows.evaluation.grid import exact_kinds
    from workflows.evaluation.measurements.measurement import Subject

    assert experiment.evaluate is not None
    composed = {energy.name: energy.terms for energy in experiment.evaluate.composed}
    kinds = {entry.name: entry.energy for entry in experiment.finetune}
    return Subject(
        data="",
        denoiser="",
        autoregressive="" if experiment.has_autoregressive else None,
        judge="" if has_judge else None,
        energies=dict.fromkeys(kinds, ""),
        sequences=experiment.evaluate.sequences,
        seed=experiment.seed,
        source=source,
        exact={} if source is None else exact_kinds(kinds, composed),
        composed=composed,
    )
