"""The grid: which cells an experiment's evaluation has, the controls of every comparison among them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import open_denoiser
from edlm.energies.kinds import EnergyConfig, Step
from edlm.interfaces import AnyEnergy, Verifiable
from edlm.planning.compute_budget import StepChoice
from edlm.sampling.sampler import EXACT, Sampler
from edlm.storage import local_copy
from workflows.evaluation.measurements.calibration import Calibration
from workflows.evaluation.measurements.compute_budget import AdaptiveEffort
from workflows.evaluation.measurements.cost import AUTOREGRESSIVE, Cost
from workflows.evaluation.measurements.exact_distance import EnergyTruth, MarginalTruth, SampleTruth
from workflows.evaluation.measurements.likelihood import Bound, Paper, Partition, Reference
from workflows.evaluation.measurements.measurement import (
    PLAIN,
    UNIFORM,
    AbstractMeasurement,
    ExactKind,
    MeasuredRows,
    Subject,
    law_of,
)
from workflows.evaluation.measurements.quality import AutoregressiveSamples, DataTexts, Samples
from workflows.evaluation.measurements.race_entropy import RaceEntropy, SampledRaceEntropy
from workflows.evaluation.measurements.step_grid import FittedGrid
from workflows.evaluation.measurements.zero_shot import AutoregressiveZeroShot, DenoiserZeroShot, SamplerZeroShot
from workflows.experiment import Evaluate, Experiment
from workflows.reporting.samplers import EXACT_CONDITIONAL, EXACT_DRAFTS, exact_twin

Energies = Mapping[str, AnyEnergy]

WHOLE_WINDOW = (0.0, 1.0)
RACE_STEPS = (1, 16, 128, 1024)  # in closed form a T costs nothing


def grid(experiment: Experiment, subject: Subject) -> tuple[list[AbstractMeasurement], list[AbstractMeasurement]]:
    """(cells that may run beside others, cells that are timed and run alone), each list the longest first."""
    wanted = experiment.evaluate
    denoiser = open_denoiser(local_copy(subject.denoiser))
    energies = {name: open_energy(local_copy(uri), denoiser) for name, uri in subject.energies.items()}
    exact = {name: kind.build(law_of(subject)) for name, kind in subject.exact.items()}
    together = [
        Reference(subject=subject, draws=wanted.nelbo_draws),
        *_bounds(wanted, subject, {**energies, **exact}),
        *_fitted(wanted, subject, energies),
        *_estimates(experiment, subject, energies),
        *_texts(wanted, subject, energies),
        *_elsewhere(experiment, subject, energies),
    ]
    if wanted.legacy:
        together.append(RaceEntropy(subject=subject, steps=RACE_STEPS))
        together += [SampledRaceEntropy(subject=subject, steps=steps, texts=wanted.samples) for steps in wanted.steps]
    if subject.source is not None:
        together += _truths(wanted, subject, energies)
    alone = [*_costs(wanted, subject, energies), *_efforts(wanted, subject, energies)]
    return sorted(together, key=lambda cell: -cell.cost), alone


def exact_kinds(energies: Iterable[EnergyConfig]) -> dict[str, ExactKind]:
    """The exact energies that stand beside the trained ones where the source's law is known, by name."""
    blocks = {energy.block for energy in energies if isinstance(energy, Step)}
    return {
        EXACT_DRAFTS: ExactKind(whole_sequence=True),
        EXACT_CONDITIONAL: ExactKind(whole_sequence=False, normalised=True),
        **{exact_twin(False, block): ExactKind(whole_sequence=False, block=block) for block in {*blocks, None}},
    }


def is_normalised(energy: AnyEnergy) -> bool:
    """Whether its law can be sampled exactly."""
    return getattr(energy, "normalised", False)


def candidates_of(energy: AnyEnergy, wanted: Evaluate, candidates: Iterable[int]) -> list[int]:
    """Every k above 1 that its kind of energy is measured with, and the exact sampler where the energy has one."""
    dear = wanted.whole_draft_candidates if energy.whole_sequence else None
    resampled = [k for k in candidates if k > 1 and (dear is None or k in dear)]
    return resampled + ([EXACT] if is_normalised(energy) else [])


def exact_samplers(energy: AnyEnergy, wanted: Evaluate, sampler: Sampler) -> list[Sampler]:
    """The sampler; and where it samples exactly the one that verifies drafts, if that is wanted and can be done."""
    verifies = wanted.speculative and sampler.candidates == EXACT and isinstance(energy, Verifiable)
    return [sampler, replace(sampler, speculative=True)] if verifies else [sampler]


def plain_steps(wanted: Evaluate, steps: Iterable[int]) -> list[int]:
    """T at which plain diffusion is measured beside energies that are measured at `steps`."""
    return sorted({*steps, *wanted.plain_steps})


def windows_of(energy: AnyEnergy, wanted: Evaluate, steps: int) -> list[tuple[float, float]]:
    """Those of the settings; whole drafts are weighed in the last step alone, too, where they throw nothing away."""
    last = [(0.0, 1 / steps)] if energy.whole_sequence and steps > 1 else []
    return list(dict.fromkeys([*wanted.windows, *last]))


def _bounds(wanted: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    for steps in plain_steps(wanted, {*wanted.steps, *wanted.fitted_steps, *wanted.effort_steps}):
        yield Bound(subject=subject, energy=PLAIN, sampler=Sampler(steps=steps))
    for steps in wanted.steps:
        control = Sampler(steps=steps, candidates=max(wanted.candidates))
        if control.candidates > 1:
            yield Bound(subject=subject, energy=UNIFORM, sampler=control)
        for name, energy in energies.items():
            windows = windows_of(energy, wanted, steps)
            for k, window, tau in product(
                candidates_of(energy, wanted, wanted.candidates), windows, wanted.temperatures
            ):
                if k == EXACT and (tau != 1 or window != WHOLE_WINDOW):
                    continue
                sampler = Sampler(steps=steps, candidates=k, window=window, energy_temperature=tau)
                # Only beside whole drafts does anything random stand that repeats could average.
                repeats, tightness = (wanted.repeats, wanted.tightness) if energy.whole_sequence else (1, None)
                yield Bound(subject=subject, energy=name, sampler=sampler, repeats=repeats, tightness=tightness)
        for name, sampler in _other_laws(wanted, energies, steps):
            yield Bound(subject=subject, energy=name, sampler=sampler)


def _other_laws(wanted: Evaluate, energies: Energies, steps: int) -> Iterator[tuple[str, Sampler]]:
    """Samplers that choose otherwise what a step reveals, with the energies that weigh what it keeps."""
    many = [(PLAIN, 1)]
    for name, energy in energies.items():
        many += [
            (name, k) for k in candidates_of(energy, wanted, [max(wanted.candidates)]) if not energy.whole_sequence
        ]
    for how, (name, k) in product(wanted.revealing, many):
        yield name, Sampler(steps=steps, candidates=k, revealing=how)


def _fitted(wanted: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    if not wanted.fitted_steps:
        return
    samplers = [(PLAIN, 1)]
    for name, energy in energies.items():
        samplers += [(name, k) for k in candidates_of(energy, wanted, wanted.candidates) if not energy.whole_sequence]
    for name, k in samplers:
        if wanted.fitted_candidates is None or k in wanted.fitted_candidates:
            how = Sampler(steps=1, candidates=k)
            of = {"subject": subject, "steps": wanted.fitted_steps, "points": wanted.fitted_points}
            yield FittedGrid(energy=name, sampler=how, **of)


def _efforts(wanted: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    """Plans of effort among all that weigh what a step keeps. They time their steps themselves, and so run alone."""
    choices = [
        StepChoice(name, k)
        for name, energy in energies.items()
        if not energy.whole_sequence
        for k in candidates_of(energy, wanted, wanted.candidates)
    ]
    for steps in wanted.effort_steps:
        yield AdaptiveEffort(
            subject=subject, steps=steps, choices=tuple(choices), budgets=wanted.effort_budgets,
            timed_texts=wanted.timed_texts, judge=wanted.judge, count=wanted.samples,
            token_temperatures=wanted.token_temperatures,
        )  # fmt: skip


def fitted_grid(
    experiment: Experiment, subject: Subject, found: Iterable[tuple[AbstractMeasurement, MeasuredRows]]
) -> tuple[list[AbstractMeasurement], list[AbstractMeasurement]]:
    """The cells of the samplers whose steps were fitted, which had to be found first: bounds, texts, and costs."""
    wanted = experiment.evaluate
    together, alone = [], []
    for cell, one in found:
        if not isinstance(cell, FittedGrid):
            continue
        for row in one.rows["step_grids"]:
            how = replace(cell.sampler, steps=row["steps"], grid=tuple(row["times"]))
            together.append(Bound(subject=subject, energy=cell.energy, sampler=how))
            if cell.energy == PLAIN or how.steps in wanted.timed_steps:
                alone.append(Cost(subject=subject, energy=cell.energy, sampler=how, texts=wanted.timed_texts))
            if how.steps in wanted.sample_steps:
                of = {"subject": subject, "judge": wanted.judge, "count": wanted.samples}
                together += [
                    Samples(**of, weighing=cell.energy, how=how, token_temperature=warmth)
                    for warmth in wanted.token_temperatures
                ]
    return sorted(together, key=lambda cell: -cell.cost), alone


def _estimates(experiment: Experiment, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    wanted = experiment.evaluate
    contrasted = {one.name for one in experiment.finetune if one.training is not None}
    for name, energy in energies.items():
        if energy.whole_sequence:
            most = max(wanted.log_partition_draws)
            yield Paper(subject=subject, energy=name, draws=wanted.paper_draws, log_partition_draws=most)
        if energy.whole_sequence or not is_normalised(energy):
            for drafts in wanted.log_partition_draws:
                yield Partition(subject=subject, energy=name, draws=wanted.paper_draws, drafts=drafts)
        if name in contrasted and not is_normalised(energy):
            yield Calibration(subject=subject, energy=name, draws=wanted.calibration_draws)


def _texts(wanted: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    k = max(wanted.candidates)
    of = {"subject": subject, "judge": wanted.judge, "count": wanted.samples}
    yield DataTexts(**of)
    yield DataTexts(**of, repeated=True)
    for warmth in wanted.token_temperatures:
        yield AutoregressiveSamples(**of, token_temperature=warmth)
        for steps in plain_steps(wanted, wanted.sample_steps):
            yield Samples(**of, weighing=PLAIN, how=Sampler(steps=steps), token_temperature=warmth)
        for steps, (name, energy) in product(wanted.sample_steps, energies.items()):
            for many in candidates_of(energy, wanted, wanted.sample_candidates or [k]):
                for how in exact_samplers(energy, wanted, Sampler(steps=steps, candidates=many)):
                    yield Samples(**of, weighing=name, how=how, token_temperature=warmth)
        for steps in wanted.sample_steps:
            for name, how in _other_laws(wanted, energies, steps):
                yield Samples(**of, weighing=name, how=how, token_temperature=warmth)
    for steps in wanted.sample_steps:
        for many in wanted.sample_candidates or ([k] if k > 1 else []):
            yield Samples(**of, weighing=UNIFORM, how=Sampler(steps=steps, candidates=many))
        if wanted.legacy:
            yield Samples(**of, weighing=PLAIN, how=Sampler(steps=steps), legacy=True)


def _elsewhere(experiment: Experiment, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    wanted, serving = experiment.evaluate, experiment.register
    for where in wanted.zero_shot:
        yield DenoiserZeroShot(subject=subject, where=where, draws=wanted.paper_draws)
        yield AutoregressiveZeroShot(subject=subject, where=where)
        if serving.energy in energies:
            yield SamplerZeroShot(subject=subject, where=where, energy=serving.energy, sampler=serving.sampler)


def _truths(wanted: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    k = max(wanted.candidates)
    yield MarginalTruth(subject=subject, draws=wanted.nelbo_draws)
    for steps in wanted.sample_steps:
        yield SampleTruth(subject=subject, energy=PLAIN, sampler=Sampler(steps=steps), count=wanted.samples)
    for name, energy in energies.items():
        yield EnergyTruth(subject=subject, energy=name, steps=wanted.sample_steps, candidates=max(2, k))
        for steps, many in product(wanted.sample_steps, candidates_of(energy, wanted, wanted.candidates)):
            how = Sampler(steps=steps, candidates=many)
            yield SampleTruth(subject=subject, energy=name, sampler=how, count=wanted.samples)


def _costs(wanted: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    def cost(energy: str, sampler: Sampler) -> Cost:
        return Cost(subject=subject, energy=energy, sampler=sampler, texts=wanted.timed_texts)

    yield cost(AUTOREGRESSIVE, Sampler(steps=1))
    for steps in plain_steps(wanted, {*wanted.steps, *wanted.fitted_steps, *wanted.effort_steps}):
        yield cost(PLAIN, Sampler(steps=steps))
    for steps, (name, energy) in product(wanted.timed_steps, energies.items()):
        for k, window in product(candidates_of(energy, wanted, wanted.candidates), windows_of(energy, wanted, steps)):
            if k == EXACT and window != WHOLE_WINDOW:
                continue
            for how in exact_samplers(energy, wanted, Sampler(steps=steps, candidates=k, window=window)):
                yield cost(name, how)
    for steps in wanted.timed_steps:
        for name, how in _other_laws(wanted, energies, steps):
            yield cost(name, how)
