"""Training loop: an engine owns the weights, a tracker records the metrics, and `fit` takes the steps."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edlm.data.batches import Rows
from edlm.rng import Purpose, seeds
from edlm.training.early_stopping import finished, record_validation
from edlm.training.interfaces import Engine, NonFiniteLoss
from edlm.training.learning_rate import learning_rate
from edlm.training.resume_compatibility import keeps_final_state
from edlm.training.settings import Training, share
from edlm.training.validation import METRIC, validation_losses

QUARTERS = 4  # observations are averaged per quarter of t


def fit(
    engine: Engine,
    rows: Callable[[int, int, int], Rows],
    training: Training,
    seed: int,
    log: Callable[[int, Mapping[str, float]], None],
    checkpoint: Callable[[Engine], None],
    validation: Rows | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train until all steps are taken, or validation or `stop` ends it; return False in the last case.

    `rows(step, start, stop)` returns a slice of a batch. Every worker calls this function. `log` is called on rank 0
    after every step, `checkpoint` on all ranks when one is due, and after the last step if a longer training can
    continue from there. `stop` is asked on every rank after every step: once it is true on one of them, all save a
    checkpoint and end. `validation` are all rows of a validation (`validation_rows`). A final validation off the
    interval is not checkpointed, so that extending the run gives the same result.
    Raise NonFiniteLoss, on every rank alike, at the first step that is not finite.
    """
    if (training.validate_every is None) != (validation is None):
        rows_are = "missing" if validation is None else "given"
        raise ValueError(
            f"validate_every is {training.validate_every} and the validation rows are {rows_are}; "
            "`validation_rows` returns those of a training"
        )
    size = share(training, engine.world_size)
    last: float | None = None  # loss of the validation after the last step
    while not finished(engine, training):
        step, started, last = engine.step, time.perf_counter(), None
        losses, observed = [], []
        for micro in range(training.accumulation):
            start = (micro * engine.world_size + engine.rank) * size
            torch.manual_seed(int(seeds(seed, step, start, Purpose.DROPOUT)))  # makes dropout resumable
            loss, observations = engine.backward(rows(step, start, start + size))
            losses.append(loss.detach().float())
            observed.append(observations)
        every_loss = engine.gather(torch.stack(losses).mean())
        _require_finite(every_loss, step, "the loss")
        rate = learning_rate(training, step)
        norm = engine.update(rate)
        norms, stops = engine.gather(torch.tensor([norm, float(stop())])).unbind(dim=1)
        _require_finite(norms[:, None], step, "the gradient's norm")
        metrics = {"loss_nats_per_token": every_loss.mean().item(), "learning_rate": rate, "gradient_norm": norm}
        metrics |= _by_quarter(engine, observed)
        metrics["seconds_per_step"] = time.perf_counter() - started
        if validation is not None and (_at_interval(engine, training) or engine.step == training.steps):
            metrics[METRIC] = last = _validate(engine, validation, size)
            if _at_interval(engine, training):
                record_validation(engine, last, training)
        if engine.rank == 0:
            log(step, metrics)
        stopping = bool(stops.any()) and not finished(engine, training)
        due = stopping or engine.step % training.checkpoint_every == 0
        if finished(engine, training):
            due = keeps_final_state(training)
        if due:
            checkpoint(engine)
        if stopping:
            return False
    if validation is not None and not _at_interval(engine, training):
        record_validation(engine, _validate(engine, validation, size) if last is None else last, training)
    return True


def _at_interval(engine: Engine, training: Training) -> bool:
    return training.validate_every is not None and engine.step % training.validate_every == 0


def _validate(engine: Engine, rows: Rows, size: int) -> float:
    losses, mean = validation_losses(engine, rows, size)
    _require_finite(losses, engine.step - 1, "the validation loss")
    return mean


def _require_finite(by_rank: Tensor, step: int, what: str) -> None:
    failed = torch.nonzero(~by_rank.isfinite())
    if len(failed):
        raise NonFiniteLoss(step, int(failed[0, 0]), what)


def _by_quarter(engine: Engine, observed: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return means of the observations over the global batch, and per quarter of t if the rows have a time."""
    if not observed[0]:
        return {}
    joined = {name: torch.cat([micro[name] for micro in observed]).double() for name in observed[0]}
    t = joined.pop("t", None)
    metrics = {}
    for name, values in joined.items():
        values = engine.gather(values).flatten()
        metrics[name] = values.mean().item()
        if t is None:
            continue
        quarter = (engine.gather(t).flatten() * QUARTERS).long().clamp(max=QUARTERS - 1)
        for i in range(QUARTERS):
            if bool((quarter == i).any()):
                label = f"{name}/t_{i / QUARTERS:.2f}_{(i + 1) / QUARTERS:.2f}"
                metrics[label] = values[quarter == i].mean().item()
    return metrics
