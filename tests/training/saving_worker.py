"""A small training that saves a checkpoint after every step, to be killed at any moment; its last state as a file."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from edlm.training.checkpointing import Checkpointing
from edlm.training.local_engine import LocalEngine
from edlm.training.loop import fit
from tests import toy

STEPS = 40


def main(workspace: str, output: Path, steps: int = STEPS) -> None:
    settings = toy.training(steps=steps, checkpoint_every=1, decay="constant")
    torch.set_num_threads(1)
    objective = toy.Toy()
    torch.manual_seed(5)
    objective.trained.append(nn.Linear(toy.VOCABULARY, 40_000))  # 8 MB of state: saving takes a good part of the time
    objective.trained.append(nn.Linear(40_000, toy.VOCABULARY))
    engine = LocalEngine(objective, settings)
    checkpointing = Checkpointing(engine, workspace)
    checkpointing.resume()
    print("started", flush=True)

    def log(step: int, metrics) -> None:
        print(step, metrics["loss_nats_per_token"], flush=True)

    with checkpointing:
        fit(engine, toy.rows, settings, 0, log, checkpointing.save)
    save_file(engine.state(), output)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
