"""What a training step costs the host of a device, counted on the pretended one."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch

from edlm.baselines.published_training import PlainTrainer
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from edlm.training.settings import Training
from workflows.benchmarking.pretended_device import NAME, HostTransfers, pretended
from workflows.benchmarking.training_objectives import OBJECTIVES, PLAIN, NetworkSizes, RandomRows

STEPS = 3  # the second counts: the first makes the state of the optimizer, and a log follows the third
NARROW, HEADS = 32, 4  # channels and heads of the networks: their number does not change the costs


@dataclass(frozen=True)
class HostCosts:
    """Operations that the host hands to the device in a step, and how often it waits for an answer."""

    dispatches: int
    waits: int


def host_costs(
    name: str, plain: bool, sizes: NetworkSizes, vocabulary: int, length: int, training: Training
) -> HostCosts:
    """Return the costs of a step of an objective, of the training loop or of the `plain` step."""
    with pretended() as counts:
        rows = RandomRows(sizes, vocabulary, length)
        narrow = replace(sizes, width=NARROW, heads=HEADS, head_width=NARROW)
        objective = OBJECTIVES[name](narrow, vocabulary).to(NAME)
        take = _plain_steps if plain else _steps
        seen = take(name, objective, rows, training, counts)
    between = [
        HostCosts(after.dispatches - before.dispatches, after.waits - before.waits)
        for before, after in itertools.pairwise(seen)
    ]
    return between[-1]


def _steps(_: str, objective: Any, rows: RandomRows, training: Training, counts: HostTransfers) -> list[HostCosts]:
    seen: list[HostCosts] = []

    def noted(step: int, start: int, stop: int):
        seen.append(HostCosts(counts.dispatches, counts.waits))
        return rows(step, start, stop)

    settings = replace(training, steps=STEPS)
    fit(LocalEngine(objective, settings), noted, settings, 0, lambda *_: None, lambda _: None)
    return seen


def _plain_steps(
    name: str, objective: Any, rows: RandomRows, training: Training, counts: HostTransfers
) -> list[HostCosts]:
    trainer = PlainTrainer(
        PLAIN[name](objective, torch.Generator().manual_seed(0)), list(objective.trained.parameters()), training
    )
    tokens = rows.tokens.to(next(objective.parameters()).device)
    seen: list[HostCosts] = []
    for _ in range(STEPS):
        seen.append(HostCosts(counts.dispatches, counts.waits))
        trainer.step(tokens)
    return seen
