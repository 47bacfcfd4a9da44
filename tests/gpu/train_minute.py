"""Train a denoiser with LocalEngine for some seconds: tokens per second, peak memory, and whether the loss falls.

python -m tests.gpu.train_minute [--seconds 60] [--output train.json]

On CUDA eight layers of 512 in bfloat16, L = 512; on the CPU a rehearsal with a tiny network. Exits with 1 where a loss
is not finite or does not fall.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from edlm.data.corpus import Embedded
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.tokenizer_kinds import Characters
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear
from edlm.training.objectives import Denoising
from edlm.training.settings import Training
from tests.gpu.timed_training import ENDLESS, SEED, WARM, train_for

WRITE_SECONDS = 5.0  # between two versions of the figures


class Clock:
    """What is measured of each step, and the figures of it."""

    def __init__(self, output: Path, facts: Mapping[str, object], tokens: int) -> None:
        self.output, self.facts, self.tokens = output, facts, tokens
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.written = 0.0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.losses.append(metrics["loss_nats_per_token"])
        self.seconds.append(metrics["seconds_per_step"])
        now = time.monotonic()
        if now - self.written > WRITE_SECONDS:
            self.written = now
            self.write()

    def write(self) -> dict[str, object]:
        part = max(1, len(self.losses) // 5)
        seconds = statistics.median(self.seconds[WARM:] or self.seconds)
        figures = {
            **self.facts,
            "steps": len(self.losses),
            "seconds_per_step": seconds,
            "tokens_per_second": self.tokens / seconds,
            "first_loss_nats_per_token": statistics.fmean(self.losses[:part]),
            "last_loss_nats_per_token": statistics.fmean(self.losses[-part:]),
        }
        if torch.cuda.is_available():
            figures["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        self.output.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        return figures


def train(seconds: float, output: Path) -> dict[str, object]:
    """The figures, which `output` holds as well. Raises NonFiniteLoss."""
    cuda = torch.cuda.is_available()
    network = (
        TransformerConfig(width=512, layers=8, heads=8) if cuda else TransformerConfig(width=32, layers=1, heads=2)
    )
    length, batch, precision = (512, 64, "bfloat16") if cuda else (64, 16, "float32")
    training = Training(
        steps=ENDLESS, batch=batch, learning_rate=1e-3, warmup_steps=20, decay="constant", ema=0.99,
        precision=precision, checkpoint_every=ENDLESS, log_every=10,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        shares = Shares(validation=0.1, judge=0.1)
        data = Data(corpus=Embedded(), tokenizer=Characters(), length=length, shares=shares)
        prepare(data, Path(folder), lambda _: None)
        torch.manual_seed(SEED)
        denoiser = Denoiser(network, Characters().build([]).size).to("cuda" if cuda else "cpu")
        facts = {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "torch": torch.__version__,
            "width": network.width, "layers": network.layers, "length": length, "batch": batch, "precision": precision,
            "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        }  # fmt: skip
        clock = Clock(output, facts, batch * length)
        train_for(seconds, Denoising(denoiser, LogLinear(), SEED), Path(folder), training, clock.log)
    return clock.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=Path("train.json"))
    given = parser.parse_args()
    figures = train(given.seconds, given.output)
    print(json.dumps(figures))
    if not figures["last_loss_nats_per_token"] < figures["first_loss_nats_per_token"]:  # type: ignore[operator]
        sys.exit("the loss does not fall")


if __name__ == "__main__":
    main()
