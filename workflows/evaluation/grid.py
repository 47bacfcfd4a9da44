"""Evaluation grid: the measurements of an experiment, with the controls of every comparison."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product

from edlm.checkpoints.energies import open_energy
from edlm.checkpoints.networks import open_denoiser
from edlm.energies.compose import joined_block
from edlm.energies.kinds import EnergyConfig
from edlm.interfaces import AnyEnergy, VerifiesDrafts
from edlm.local_copies import local_copy
from edlm.planning.compute_budget import StepChoice
from edlm.sampling.sampler import EXACT, Sampler
from workflows.evaluation.measurements.calibration import Calibration
from workflows.evaluation.measurements.compute_budget import AdaptiveEffort
from workflows.evaluation.measurements.cost import Cost
from workflows.evaluation.measurements.exact_distance import (
    ExactEnergyDistance,
    ExactMarginalDistance,
    ExactSampleDistance,
)
from workflows.evaluation.measurements.fitted_step_times import FittedGrid
from workflows.evaluation.measurements.likelihood import Bound, Paper, Partition, Reference
from workflows.evaluation.measurements.measurement import (
    AbstractMeasurement,
    ExactKind,
    MeasuredRows,
    Subject,
    composed,
    distribution_of,
)
from workflows.evaluation.measurements.quality import AutoregressiveSamples, DataTexts, Samples
from workflows.evaluation.measurements.race_entropy import RaceEntropy, SampledRaceEntropy
from workflows.evaluation.measurements.zero_shot import AutoregressiveZeroShot, DenoiserZeroShot, SamplerZeroShot
from workflows.evaluation_settings import Evaluate
from workflows.experiment import Experiment, Register
from workflows.reporting.sampler_labels import EXACT_CONDITIONAL, EXACT_WHOLE_SEQUENCE, exact_twin
from workflows.row_names import AUTOREGRESSIVE, PLAIN, UNIFORM

Energies = Mapping[str, AnyEnergy]
Weights = Mapping[str, Mapping[str, float]]
"""Weights of the terms of composed energies, by name."""

WHOLE_WINDOW = (0.0, 1.0)
RACE_STEPS = (1, 16, 128, 1024)  # in closed form, a large T costs no more than a small one


def grid(
    experiment: Experiment, settings: Evaluate, subject: Subject
) -> tuple[list[AbstractMeasurement], list[AbstractMeasurement]]:
    """Return (measurements that may run in parallel; those that are timed and run alone), each the longest first.

    `settings` are those of the experiment with their judge resolved: without one, no texts are drawn to be judged.
    """
    denoiser = open_denoiser(local_copy(subject.denoiser))
    energies = {name: open_energy(local_copy(uri), denoiser) for name, uri in subject.energies.items()}
    return measurements(experiment, settings, subject, energies)


def measurements(
    experiment: Experiment, settings: Evaluate, subject: Subject, trained: Energies
) -> tuple[list[AbstractMeasurement], list[AbstractMeasurement]]:
    """Return the measurements of `grid`, given the energies of `finetune`, whose weights are not read."""
    energies = {**trained}
    energies |= {name: composed(terms, energies) for name, terms in subject.composed.items()}
    exact = {name: kind.build(distribution_of(subject)) for name, kind in subject.exact.items()}
    together = [
        Reference(subject=subject, draws=settings.nelbo_draws),
        *_bounds(settings, subject, {**energies, **exact}),
        *_fitted(settings, subject, energies),
        *_estimates(experiment, settings, subject, energies),
        *_texts(settings, subject, energies),
        *_zero_shot(experiment.register, settings, subject),
    ]
    if settings.published_sampler:
        together.append(RaceEntropy(subject=subject, steps=RACE_STEPS))
        together += [
            SampledRaceEntropy(subject=subject, steps=steps, texts=settings.samples) for steps in settings.steps
        ]
    if subject.source is not None:
        together += _exact_distances(settings, subject, energies)
    alone = [*_costs(settings, subject, energies), *_efforts(settings, subject, energies)]
    return _longest_first(together), _longest_first(alone)


def _longest_first(cells: Iterable[AbstractMeasurement]) -> list[AbstractMeasurement]:
    return sorted(cells, key=lambda cell: -cell.cost)


def exact_kinds(energies: Mapping[str, EnergyConfig], sums: Weights) -> dict[str, ExactKind]:
    """Return by name the exact energies, known from the source's distribution, that accompany the measured ones."""
    step = {name: energy.block for name, energy in energies.items() if not energy.network.whole_sequence}
    blocks = {
        *step.values(),
        *(joined_block(step[term] for term in terms) for terms in sums.values() if terms.keys() <= step.keys()),
    }
    return {
        EXACT_WHOLE_SEQUENCE: ExactKind(whole_sequence=True),
        EXACT_CONDITIONAL: ExactKind(whole_sequence=False, normalised=True),
        **{exact_twin(False, block): ExactKind(whole_sequence=False, block=block) for block in {*blocks, None}},
    }


def is_normalised(energy: AnyEnergy) -> bool:
    """Return whether the energy's distribution can be sampled exactly."""
    return getattr(energy, "normalised", False)


def candidates_of(energy: AnyEnergy, settings: Evaluate, candidates: Iterable[int]) -> list[int]:
    """Return every k above 1 for this kind of energy, and EXACT if the energy can be sampled exactly."""
    allowed = settings.whole_sequence_candidates if energy.whole_sequence else None
    resampled = [k for k in candidates if k > 1 and (allowed is None or k in allowed)]
    return resampled + ([EXACT] if is_normalised(energy) else [])


def exact_samplers(energy: AnyEnergy, settings: Evaluate, sampler: Sampler) -> list[Sampler]:
    """Return the sampler and, if it samples exactly, its speculative variant where requested and supported."""
    verifies = settings.speculative and sampler.candidates == EXACT and isinstance(energy, VerifiesDrafts)
    return [sampler, replace(sampler, speculative=True)] if verifies else [sampler]


def plain_steps(settings: Evaluate, steps: Iterable[int]) -> list[int]:
    """Return the T at which plain diffusion is measured alongside energies at `steps`."""
    return sorted({*steps, *settings.plain_steps})


def windows_of(energy: AnyEnergy, settings: Evaluate, steps: int) -> list[tuple[float, float]]:
    """Return the configured windows; for whole-sequence energies also the last step alone, which discards no token."""
    last = [(0.0, 1 / steps)] if energy.whole_sequence and steps > 1 else []
    return list(dict.fromkeys([*settings.windows, *last]))


def _bounds(settings: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    for steps in plain_steps(settings, {*settings.steps, *settings.fitted_steps, *settings.effort_steps}):
        yield Bound(subject=subject, energy=PLAIN, sampler=Sampler(steps=steps))
    for steps in settings.steps:
        control = Sampler(steps=steps, candidates=max(settings.candidates))
        if control.candidates > 1:
            yield Bound(subject=subject, energy=UNIFORM, sampler=control)
        for name, energy in energies.items():
            windows = windows_of(energy, settings, steps)
            for k, window, tau in product(
                candidates_of(energy, settings, settings.candidates), windows, settings.temperatures
            ):
                if k == EXACT and (tau != 1 or window != WHOLE_WINDOW):
                    continue
                sampler = Sampler(steps=steps, candidates=k, window=window, energy_temperature=tau)
                # Repeats average the random tokens beside the unmasked ones, which only whole-sequence energies score.
                repeats, tightness = (settings.repeats, settings.tightness) if energy.whole_sequence else (1, None)
                yield Bound(subject=subject, energy=name, sampler=sampler, repeats=repeats, tightness=tightness)
        for name, sampler in _other_unmasking_rules(settings, energies, steps):
            yield Bound(subject=subject, energy=name, sampler=sampler)


def _other_unmasking_rules(settings: Evaluate, energies: Energies, steps: int) -> Iterator[tuple[str, Sampler]]:
    """Yield samplers with other unmasking rules, for plain diffusion and the step energies."""
    pairs = [(PLAIN, 1)]
    for name, energy in energies.items():
        pairs += [
            (name, k) for k in candidates_of(energy, settings, [max(settings.candidates)]) if not energy.whole_sequence
        ]
    for rule, (name, k) in product(settings.unmasking, pairs):
        yield name, Sampler(steps=steps, candidates=k, unmasking=rule)


def _fitted(settings: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    if not settings.fitted_steps:
        return
    samplers = [(PLAIN, 1)]
    for name, energy in energies.items():
        samplers += [
            (name, k) for k in candidates_of(energy, settings, settings.candidates) if not energy.whole_sequence
        ]
    for name, k in samplers:
        if settings.fitted_candidates is None or k in settings.fitted_candidates:
            sampler = Sampler(steps=1, candidates=k)
            common = {"subject": subject, "steps": settings.fitted_steps, "points": settings.fitted_points}
            yield FittedGrid(energy=name, sampler=sampler, **common)


def _efforts(settings: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    """Yield effort plans over all step energies. They time their steps themselves, and therefore run alone."""
    choices = [
        StepChoice(name, k)
        for name, energy in energies.items()
        if not energy.whole_sequence
        for k in candidates_of(energy, settings, settings.candidates)
    ]
    for steps in settings.effort_steps if choices else ():
        yield AdaptiveEffort(
            subject=subject, steps=steps, choices=tuple(choices), budgets=settings.effort_budgets,
            timed_texts=settings.timed_texts, judge=settings.judge, count=settings.samples,
            token_temperatures=settings.token_temperatures,
        )  # fmt: skip


def fitted_grid(
    settings: Evaluate, subject: Subject, measured: Iterable[tuple[AbstractMeasurement, MeasuredRows]]
) -> tuple[list[AbstractMeasurement], list[AbstractMeasurement]]:
    """Return, as `grid` does, bounds, texts and costs of the samplers whose steps have been fitted by then."""
    together, alone = [], []
    for cell, result in measured:
        if not isinstance(cell, FittedGrid):
            continue
        for row in result.rows["step_grids"]:
            sampler = replace(cell.sampler, steps=row["steps"], grid=tuple(row["times"]))
            together.append(Bound(subject=subject, energy=cell.energy, sampler=sampler))
            if cell.energy == PLAIN or sampler.steps in settings.timed_steps:
                alone.append(Cost(subject=subject, energy=cell.energy, sampler=sampler, texts=settings.timed_texts))
            if settings.judge is not None and sampler.steps in settings.sample_steps:
                common = {"subject": subject, "judge": settings.judge, "count": settings.samples}
                together += [
                    Samples(**common, energy=cell.energy, sampler=sampler, token_temperature=temperature)
                    for temperature in settings.token_temperatures
                ]
    return _longest_first(together), _longest_first(alone)


def _estimates(
    experiment: Experiment, settings: Evaluate, subject: Subject, energies: Energies
) -> Iterator[AbstractMeasurement]:
    trained = {entry.name for entry in experiment.finetune if entry.energy.trained}
    for name, energy in energies.items():
        if energy.whole_sequence:
            largest = max(settings.log_partition_draws)
            yield Paper(subject=subject, energy=name, draws=settings.paper_draws, log_partition_draws=largest)
        if energy.whole_sequence or not is_normalised(energy):
            for draws in settings.log_partition_draws:
                yield Partition(subject=subject, energy=name, draws=settings.paper_draws, log_partition_draws=draws)
        if name in trained and not is_normalised(energy):
            yield Calibration(subject=subject, energy=name, draws=settings.calibration_draws)


def _texts(settings: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    if settings.judge is None:
        return
    k = max(settings.candidates)
    common = {"subject": subject, "judge": settings.judge, "count": settings.samples}
    yield DataTexts(**common)
    yield DataTexts(**common, repeated=True)
    for temperature in settings.token_temperatures:
        if subject.autoregressive is not None:
            yield AutoregressiveSamples(**common, token_temperature=temperature)
        for steps in plain_steps(settings, settings.sample_steps):
            yield Samples(**common, energy=PLAIN, sampler=Sampler(steps=steps), token_temperature=temperature)
        for steps, (name, energy) in product(settings.sample_steps, energies.items()):
            for candidates in candidates_of(energy, settings, settings.sample_candidates or [k]):
                for sampler in exact_samplers(energy, settings, Sampler(steps=steps, candidates=candidates)):
                    yield Samples(**common, energy=name, sampler=sampler, token_temperature=temperature)
        for steps in settings.sample_steps:
            for name, sampler in _other_unmasking_rules(settings, energies, steps):
                yield Samples(**common, energy=name, sampler=sampler, token_temperature=temperature)
    for steps in settings.sample_steps:
        for candidates in settings.sample_candidates or ([k] if k > 1 else []):
            yield Samples(**common, energy=UNIFORM, sampler=Sampler(steps=steps, candidates=candidates))
        if settings.published_sampler:
            yield Samples(**common, energy=PLAIN, sampler=Sampler(steps=steps), published=True)


def _zero_shot(registered: Register, settings: Evaluate, subject: Subject) -> Iterator[AbstractMeasurement]:
    for corpus in settings.zero_shot:
        yield DenoiserZeroShot(subject=subject, zero_shot=corpus, draws=settings.paper_draws)
        if subject.autoregressive is not None:
            yield AutoregressiveZeroShot(subject=subject, zero_shot=corpus)
        energy = registered.energy or PLAIN
        yield SamplerZeroShot(subject=subject, zero_shot=corpus, energy=energy, sampler=registered.sampler)


def _exact_distances(settings: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    k = max(settings.candidates)
    yield ExactMarginalDistance(subject=subject, draws=settings.nelbo_draws)
    for steps in settings.sample_steps:
        yield ExactSampleDistance(subject=subject, energy=PLAIN, sampler=Sampler(steps=steps), count=settings.samples)
    for name, energy in energies.items():
        yield ExactEnergyDistance(subject=subject, energy=name, steps=settings.sample_steps, candidates=max(2, k))
        for steps, candidates in product(settings.sample_steps, candidates_of(energy, settings, settings.candidates)):
            sampler = Sampler(steps=steps, candidates=candidates)
            yield ExactSampleDistance(subject=subject, energy=name, sampler=sampler, count=settings.samples)


def _costs(settings: Evaluate, subject: Subject, energies: Energies) -> Iterator[AbstractMeasurement]:
    def cost(energy: str, sampler: Sampler) -> Cost:
        return Cost(subject=subject, energy=energy, sampler=sampler, texts=settings.timed_texts)

    if subject.autoregressive is not None:
        yield cost(AUTOREGRESSIVE, Sampler(steps=1))
    for steps in plain_steps(settings, {*settings.steps, *settings.fitted_steps, *settings.effort_steps}):
        yield cost(PLAIN, Sampler(steps=steps))
    for steps, (name, energy) in product(settings.timed_steps, energies.items()):
        for k, window in product(
            candidates_of(energy, settings, settings.candidates), windows_of(energy, settings, steps)
        ):
            if k == EXACT and window != WHOLE_WINDOW:
                continue
            for variant in exact_samplers(energy, settings, Sampler(steps=steps, candidates=k, window=window)):
                yield cost(name, variant)
    for steps in settings.timed_steps:
        for name, variant in _other_unmasking_rules(settings, energies, steps):
            yield cost(name, variant)
