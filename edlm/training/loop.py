"""Training loop: an engine owns the weights, a tracker records the metrics, and `fit` takes the steps."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edlm.data.batches import Rows
from edlm.rng import Purpose, seeds
from edlm.training.engine import Engine, NonFiniteLoss
from edlm.training.settings import Training, learning_rate, share

QUARTERS = 4  # observations are averaged per quarter of t


def fit(
    engine: Engine,
    rows: Callable[[int, int, int], Rows],
    training: Training,
    seed: int,
    log: Callable[[int, Mapping[str, float]], None],
    checkpoint: Callable[[Engine], None],
) -> None:
    """Train until all steps are taken. `rows(step, start, stop)` returns a slice of a step's global batch.

    Every worker calls it. `log` is called on rank 0 after every step, `checkpoint` on all ranks when one is due.
    Raise NonFiniteLoss, on every rank alike, at the first step that is not finite.
    """
    size = share(training, engine.world)
    while engine.step < training.steps:
        step, started = engine.step, time.perf_counter()
        losses, observed = [], []
        for micro in range(training.accumulation):
            start = (micro * engine.world + engine.rank) * size
            torch.manual_seed(int(seeds(seed, step, start, Purpose.DROPOUT)))  # makes dropout resumable
            loss, observations = engine.backward(rows(step, start, start + size))
            losses.append(loss.detach().float())
            observed.append(observations)
        every_loss = engine.gather(torch.stack(losses).mean())
        _require_finite(every_loss, step, "the loss")
        rate = learning_rate(training, step)
        norm = engine.update(rate)
        _require_finite(engine.gather(torch.tensor(norm)), step, "the gradient's norm")
        metrics = {"loss_nats_per_token": every_loss.mean().item(), "learning_rate": rate, "gradient_norm": norm}
        metrics |= _by_quarter(engine, observed)
        seconds = time.perf_counter() - started
        if engine.rank == 0:
            log(step, {**metrics, "seconds_per_step": seconds})
        if engine.step % training.checkpoint_every == 0 and engine.step < training.steps:
            checkpoint(engine)


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
