"""Groups of DeepSpeed workers that take training steps when they are asked to, so that they can be raced."""

import functools
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
import torch.distributed

from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from edlm.sampling.memory_footprint import peak_bytes
from edlm.training.interfaces import Engine, Objective
from edlm.training.loop import fit
from edlm.training.settings import Training
from workflows.benchmarking.training_objectives import RandomRows

CPU = torch.device("cpu")
END_SECONDS = 30.0
MEASURE = "measure"  # asked of a worker: the peak memory of the steps


class WorkerGroup:
    """Workers that each hold the other end of a pipe."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def run(self, steps: int) -> None:
        """Take so many steps on all workers."""
        self._answers((steps, None))

    def peak_bytes(self, steps: int) -> int:
        """Take so many steps and return the peak bytes of tensors that they allocate, of the worker with the most."""
        return max(self._answers((steps, MEASURE)))

    def _answers(self, question: tuple[int, str | None]) -> list[int]:
        for pipe in self._pipes:
            pipe.send(question)
        return [pipe.recv() for pipe in self._pipes]


@contextmanager
def worker_group(
    workers: int, zero: Zero, make: Callable[[], Objective], rows: RandomRows, training: Training
) -> Iterator[WorkerGroup]:
    """Start workers of one thread each, that shard as `zero` says; they end with the context.

    `make` and `rows` are sent to them. Raise EOFError if a worker ends early; its traceback is on standard error.
    """
    spawn, port = multiprocessing.get_context("spawn"), _free_port()
    pairs = [spawn.Pipe() for _ in range(workers)]
    processes = [
        spawn.Process(target=_work, args=(rank, workers, port, theirs, zero, make, rows, training), daemon=True)
        for rank, (_, theirs) in enumerate(pairs)
    ]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()  # so that the end of the worker ends the pipe
    ours = [pipe for pipe, _ in pairs]
    try:
        for pipe in ours:
            pipe.recv()  # ready
        yield WorkerGroup(ours)
    finally:
        for pipe in ours:
            pipe.close()
        for process in processes:
            process.join(END_SECONDS)
            process.kill()


def _work(
    rank: int,
    workers: int,
    port: int,
    pipe: Connection,
    zero: Zero,
    make: Callable[[], Objective],
    rows: RandomRows,
    training: Training,
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    engine = ZeroEngine(make(), training, zero, CPU)
    pipe.send(0)
    while True:
        try:
            steps, question = pipe.recv()
        except EOFError:
            break
        take = functools.partial(take_steps, engine, rows, training, steps)
        if question is None:
            take()
        pipe.send(peak_bytes(take, CPU) if question == MEASURE else 0)
    torch.distributed.destroy_process_group()


def take_steps(engine: Engine, rows: RandomRows, training: Training, steps: int) -> None:
    """Take so many more steps in the training loop itself, which gathers their metrics after the last one."""
    end = replace(training, steps=engine.step + steps)
    fit(engine, rows, end, 0, lambda *_: None, lambda _: None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
