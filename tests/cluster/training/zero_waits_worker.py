"""One of two processes of `test_zero_waits`: what a step of every stage waits for; results as JSON."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from cluster.training.sharded_muon import ShardedMuon
from cluster.training.timed_collectives import timed_collectives
from edlm.data.batches import Rows
from edlm.training.interfaces import NonFiniteLoss
from edlm.training.loop import fit
from edlm.training.settings import Muon, Training
from edlm.training.step_clock import StepClock
from tests import toy
from tests.cluster.training.zero_objectives import objectives, science_rows
from tests.process_groups import leave

STEPS, DELAY, OF_MUON = 3, 0.1, 0.4  # seconds
FAULT, LOGGED = 1, 4  # a step that is not finite, and how many steps are taken before one is known not to be
PRECISIONS = ("float32", "bfloat16")
GRADIENT = "the gradient's norm"
CPU = torch.device("cpu")


class Answers(TorchDispatchMode):
    """Counts the numbers of a device that DeepSpeed itself asks for, as it would on a GPU."""

    asked = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator._schema.name == "aten::_local_scalar_dense":
            frame = sys._getframe(1)
            while frame.f_back is not None and f"{os.sep}torch{os.sep}" in frame.f_code.co_filename:
                frame = frame.f_back
            self.asked += f"{os.sep}deepspeed{os.sep}" in frame.f_code.co_filename
        return operator(*args, **(kwargs or {}))


def communication(stage: int, slow: int) -> float:
    """Seconds of communication in a step on rank 0, where the rank `slow` is late with its rows."""
    settings, objective, seen = toy.training(steps=STEPS, log_every=STEPS), toy.Toy(), []
    clock = StepClock(objective)
    engine = ZeroEngine(objective, settings, Zero(stage=stage), CPU)

    def late(step: int, start: int, stop: int) -> Rows:
        time.sleep(DELAY if engine.rank == slow else 0.0)
        return toy.rows(step, start, stop)

    with timed_collectives(clock):
        fit(engine, late, settings, 0, lambda _, metrics: seen.append(metrics), lambda _: None, clock=clock)
    return seen[-1]["seconds_communication"] if engine.rank == 0 else 0.0


def communication_of_muon() -> float:
    """The same where rank 1 is late with what Muon moves of the matrices."""
    settings, objective, seen = Training(steps=1, batch=8, clip=1.0, muon=Muon()), objectives()["denoising"](), []
    clock = StepClock(objective)
    engine = ZeroEngine(objective, settings, Zero(stage=2), CPU)
    move = ShardedMuon._move

    def late(*arguments: Any) -> None:
        time.sleep(OF_MUON if engine.rank == 1 else 0.0)
        move(*arguments)

    ShardedMuon._move = late
    with timed_collectives(clock):
        fit(engine, science_rows, settings, 0, lambda _, metrics: seen.append(metrics), lambda _: None, clock=clock)
    return seen[-1]["seconds_communication"] if engine.rank == 0 else 0.0


def answers(stage: int, precision: str) -> int:
    """How many numbers of the device DeepSpeed asks for in a step."""
    settings = toy.training(precision=precision)
    engine = ZeroEngine(toy.Toy(), settings, Zero(stage=stage), CPU)
    start = 4 * engine.rank
    for _ in range(2):
        with Answers() as counted:
            for _ in range(settings.accumulation):
                engine.backward(toy.rows(0, start, start + 2))
            engine.update(1e-3)
    return counted.asked


def failure(zero: Zero, precision: str, fault: toy.Fault) -> tuple[str, list[int], list[int]]:
    """The error of a training with a fault, the steps that were logged, and those after which it was saved."""
    settings = toy.training(steps=8, precision=precision, log_every=LOGGED, checkpoint_every=LOGGED)
    engine = ZeroEngine(toy.Toy(fault=fault), settings, zero, CPU)
    logged: list[int] = []
    saved: list[int] = []
    try:
        fit(engine, toy.rows, settings, 0, lambda step, _: logged.append(step), lambda one: saved.append(one.step))
    except NonFiniteLoss as error:
        return str(error), logged, saved
    return "none", logged, saved


def of_setups(measure: Callable[[int, str], Any]) -> dict[str, Any]:
    return {f"{precision} {stage}": measure(stage, precision) for precision in PRECISIONS for stage in range(4)}


def main(rank: int, port: int, output: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    infinite = toy.InfiniteGradient(FAULT, 5)
    results = {
        "communication": {str(stage): [communication(stage, slow) for slow in (1, 0)] for stage in range(4)},
        "muon": communication_of_muon(),
        "answers": of_setups(answers),
        "the loss": of_setups(lambda stage, precision: failure(Zero(stage=stage), precision, toy.Fault(FAULT, 5))),
        GRADIENT: of_setups(lambda stage, precision: failure(Zero(stage=stage), precision, infinite)),
        "offload": failure(Zero(stage=2, offload=True), "bfloat16", infinite),
    }
    if rank == 0:
        output.write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
