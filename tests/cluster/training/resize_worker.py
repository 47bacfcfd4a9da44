"""One of some processes of `test_resize`: trains every stage and precision for two steps from where others stopped."""

import contextlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed

from cluster.config import Zero
from cluster.training.deepspeed_engine import ZeroEngine
from cluster.training.watchdog import collectives_entered
from edlm.data.batches import Rows
from edlm.training.checkpointing import Checkpointing
from edlm.training.interfaces import Engine
from edlm.training.loop import fit
from edlm.training.settings import Training
from tests import toy
from tests.cluster.training.zero_worker import CPU, HaltTraining, held_out, shared
from tests.process_groups import leave

BATCH, EVERY, STEPS = 12, 2, 6  # rows: a multiple of one, two and three workers
SETUPS = [(precision, stage, False) for precision in ("float32", "bfloat16") for stage in (0, 1, 2, 3)]
SETUPS += [("float32", 3, True), ("bfloat16", 3, True)]
"""(precision, stage, whether the state is in a folder)."""


def settings(precision: str) -> Training:
    return toy.training(
        precision=precision, batch=BATCH, accumulation=1, steps=STEPS, checkpoint_every=EVERY, validate_every=1,
        keep_best=True, decay="constant",
    )  # fmt: skip


def rows(step: int, start: int, stop: int) -> Rows:
    tokens = torch.randint(toy.VOCABULARY, (BATCH, toy.LENGTH), generator=torch.Generator().manual_seed(step))
    return Rows(tokens[start:stop], step, torch.arange(start, stop), BATCH)


def trained(precision: str, zero: Zero, workspace: Path, halt: bool) -> dict[int, float]:
    """Losses by step of a training that resumes in the workspace, up to its next checkpoint if `halt`."""
    losses: dict[int, float] = {}
    # Dropout is drawn per worker and micro-step: without it, rows alone decide.
    engine = ZeroEngine(toy.Toy(0.0), settings(precision), zero, CPU)
    checkpointing = Checkpointing(engine, str(workspace), from_rank_0=shared, room=engine.room)
    checkpointing.resume()

    def log(step: int, metrics) -> None:
        losses[step] = metrics["loss_nats_per_token"]

    def save(engine: Engine) -> None:
        checkpointing.save(engine)
        if halt:
            raise HaltTraining

    with contextlib.suppress(HaltTraining), checkpointing:
        fit(engine, rows, settings(precision), 0, log, save, held_out())
    return losses


def main(rank: int, world_size: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    results = {}
    for precision, stage, on_disk in SETUPS:
        name = f"{precision}-{stage}-{on_disk}"
        zero = Zero(stage=stage, offload=on_disk, offload_folder=str(folder) if on_disk else None)
        results[name] = {"parts": trained(precision, zero, folder / "parts" / name, halt=True)}
        torch.distributed.barrier()  # rank 0 has committed
        if world_size == 2:
            results[name]["whole"] = trained(precision, zero, folder / "whole" / name, halt=False)
    counts: list = [None] * world_size
    torch.distributed.all_gather_object(counts, collectives_entered())
    assert len(set(counts)) == 1, f"ranks enter other collectives, which the watchdog takes for a hang: {counts}"
    if rank == 0:
        (folder / f"losses-{world_size}.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
