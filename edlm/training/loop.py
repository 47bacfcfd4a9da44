"""Training loop: an engine owns the weights, a tracker records the metrics, and `fit` takes the steps."""

from collections.abc import Callable, Mapping

import torch

from edlm.data.batches import Rows
from edlm.rng import Purpose, seeds
from edlm.training.deferred_metrics import DeferredMetrics, not_finite
from edlm.training.early_stopping import finished, record_validation
from edlm.training.interfaces import Engine
from edlm.training.learning_rate import learning_rate
from edlm.training.resume_compatibility import continuable_step
from edlm.training.settings import Training, share
from edlm.training.step_clock import Part, StepClock
from edlm.training.validation import METRIC, validation_losses


def fit(
    engine: Engine,
    rows: Callable[[int, int, int], Rows],
    training: Training,
    seed: int,
    log: Callable[[int, Mapping[str, float]], None],
    checkpoint: Callable[[Engine], None],
    validation: Rows | None = None,
    stop: Callable[[], bool] = lambda: False,
    clock: StepClock | None = None,
) -> bool:
    """Train until all steps are taken, or validation or `stop` ends it; return False in the last case.

    `rows(step, start, stop)` returns a slice of a batch. Every worker calls this function. `log` is called on rank 0
    for every step, `checkpoint` on all ranks when one is due, and after the last step if a longer training can
    continue from there. `stop` is asked on every rank after every step: once it is true on one of them, all save a
    checkpoint and end. `validation` are all rows of a validation (`validation_rows`). A final validation off the
    interval is not checkpointed, so that extending the run gives the same result. With a `clock` of the objective, the
    metrics have the seconds of a step by part.
    Losses stay on the device, and `log` is called for several steps at once: every `log_every` steps, and before
    validations, checkpoints and the end. Then NonFiniteLoss is raised, on every rank alike, for the first step that is
    not finite; no checkpoint is made of the steps after it.
    """
    if (training.validate_every is None) != (validation is None):
        rows_are = "missing" if validation is None else "given"
        raise ValueError(
            f"validate_every is {training.validate_every} and the validation rows are {rows_are}; "
            "`validation_rows` returns those of a training"
        )
    size = share(training, engine.world_size)
    deferred, begin = DeferredMetrics(engine), _ignored if clock is None else clock.begin
    last: float | None = None  # loss of the validation after the last step
    while not finished(engine, training):
        step, last = engine.step, None
        deferred.begin()
        losses, observed = [], []
        for micro in range(training.accumulation):
            start = (micro * engine.world_size + engine.rank) * size
            torch.manual_seed(int(seeds(seed, step, start, Purpose.DROPOUT)))  # makes dropout resumable
            begin("data")
            batch = rows(step, start, start + size)
            begin("forward")
            loss, observations = engine.backward(batch)
            losses.append(loss.detach().float())
            observed.append(observations)
        rate = learning_rate(training, step)
        begin("update")
        norm = engine.update(rate)
        begin(None)
        deferred.add(step, rate, torch.stack(losses).mean(), norm, observed)
        stopped = bool(engine.gather(torch.tensor([float(stop())])).any())
        validates = validation is not None and (_at_interval(engine, training) or engine.step == training.steps)
        reported, failure = deferred.gathered() if stopped or validates or _reports(engine, training) else ([], None)
        parts = {} if clock is None or not reported else clock.taken(len(reported))
        if validation is not None and validates and failure is None:
            reported[-1][1][METRIC] = last = _validate(engine, validation, size)
            if _at_interval(engine, training):
                record_validation(engine, last, training)
        for step, metrics in reported if engine.rank == 0 else ():
            log(step, {**metrics, **parts})
        if failure is not None:
            raise failure
        stopping = stopped and not finished(engine, training)
        due = stopping or engine.step % training.checkpoint_every == 0 or _begins_to_decay(engine, training)
        if finished(engine, training):
            due = continuable_step(training, engine.step) == engine.step
        if due:
            checkpoint(engine)
        if stopping:
            return False
    if validation is not None and not _at_interval(engine, training):
        record_validation(engine, _validate(engine, validation, size) if last is None else last, training)
    return True


def _ignored(part: Part | None) -> None:
    """Measure nothing."""


def _at_interval(engine: Engine, training: Training) -> bool:
    return training.validate_every is not None and engine.step % training.validate_every == 0


def _begins_to_decay(engine: Engine, training: Training) -> bool:
    """Return whether the next step is the first of a decay before which the state is kept."""
    return continuable_step(training, training.steps) == engine.step


def _reports(engine: Engine, training: Training) -> bool:
    """Return whether the metrics up to this step are gathered: every `log_every` steps, and before what is kept."""
    every = (training.log_every, training.checkpoint_every)
    regular = any(engine.step % steps == 0 for steps in every)
    return engine.step >= training.steps or regular or _begins_to_decay(engine, training)


def _validate(engine: Engine, rows: Rows, size: int) -> float:
    losses, mean = validation_losses(engine, rows, size)
    if (failure := not_finite(losses, engine.step - 1, "the validation loss")) is not None:
        raise failure
    return mean
