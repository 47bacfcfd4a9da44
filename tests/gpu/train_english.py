"""Train a denoiser, an autoregressive model and a conditional head within minutes, and measure and print their texts.

python -m tests.gpu.train_english [--texts train.jsonl] [--seconds 420] [--output english]

Of JSON lines with one document each, as those of docs/benchmarks/english.md; without `--texts` of the embedded corpus.
On CUDA eight layers of 512 in bfloat16, 4,096 tokens of byte-pair encoding, L = 256; on the CPU a rehearsal with tiny
networks. In the output, `figures.json` has the losses, speeds and bounds as far as they are known, and `texts.txt` the
texts. Exits with 1 where the head's bound is no lower than that of plain diffusion.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edlm.checkpoints.energies import network_on, open_energy, save_energy
from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.data.batches import whole_rows
from edlm.data.corpus import Embedded
from edlm.data.corpus_files import Files
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import BPE
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.inference.loading import load
from edlm.interfaces import Model
from edlm.likelihood import Estimate, nelbo, sampler_bound
from edlm.likelihood.bounds import autoregressive_nll
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import LogLinear
from edlm.training.energy_objectives import ConditionalLikelihoodObjective
from edlm.training.interfaces import Objective
from edlm.training.objectives import Denoising, NextToken
from edlm.training.settings import Training
from tests.gpu.timed_training import ENDLESS, SEED, train_for

SHARES = {"denoiser": 0.55, "autoregressive": 0.15, "conditional": 0.15}  # of the seconds; the rest is for the measures
STEPS = (4, 16)  # T of the bounds and of the texts
NAME = "english"


@dataclass(frozen=True)
class EvidenceSizes:
    """Networks, data and measures of a device."""

    network: TransformerConfig
    head: ConditionalEnergyConfig
    vocabulary: int
    length: int
    batch: int
    precision: str
    rows: int
    texts: int


CUDA = EvidenceSizes(
    TransformerConfig(width=512, layers=8, heads=8, dropout=0.1),
    ConditionalEnergyConfig(width=512, layers=4, heads=8, left=8, right=4),
    vocabulary=4096, length=256, batch=128, precision="bfloat16", rows=128, texts=4,
)  # fmt: skip
REHEARSAL = EvidenceSizes(
    TransformerConfig(width=32, layers=1, heads=2), ConditionalEnergyConfig(width=32, layers=1, heads=2, left=2),
    vocabulary=300, length=32, batch=16, precision="float32", rows=16, texts=1,
)  # fmt: skip


@dataclass
class Evidence:
    """Figures and texts, written as they come."""

    folder: Path
    figures: dict[str, object] = field(default_factory=dict)

    def keep(self, **figures: object) -> None:
        """Add figures, and print them."""
        self.figures |= figures
        print(json.dumps(figures), flush=True)
        (self.folder / "figures.json").write_text(json.dumps(self.figures, indent=1), encoding="utf-8")

    def estimate(self, name: str, of: Estimate, length: int) -> float:
        """Keep a mean and its standard error in nats per token, and return the mean."""
        self.keep(**{name: {"nats_per_token": of.mean / length, "standard_error": of.standard_error / length}})
        return of.mean / length


def trained(
    name: str, objective: Objective, data: Path, sizes: EvidenceSizes, seconds: float, evidence: Evidence
) -> dict[str, Tensor]:
    """Train for the share of the time, and keep the speed and the last losses."""
    settings = Training(
        steps=ENDLESS, batch=sizes.batch, learning_rate=1e-3, warmup_steps=20, decay="constant", ema=0.99,
        precision=sizes.precision, checkpoint_every=ENDLESS, log_every=20,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    losses: list[float] = []

    def log(_: int, metrics: Mapping[str, float]) -> None:
        losses.append(metrics["loss_nats_per_token"])

    started, own = time.monotonic(), seconds * SHARES[name]
    weights = train_for(own, objective, data, settings, log)
    speed = len(losses) * sizes.batch * sizes.length / (time.monotonic() - started)
    last = losses[-max(1, len(losses) // 10) :]
    evidence.keep(**{f"{name}_training": {
        "steps": len(losses), "tokens_per_second": speed, "loss_nats_per_token": sum(last) / len(last),
    }})  # fmt: skip
    return weights


def run(texts: Path | None, seconds: float, evidence: Evidence, folder: Path) -> bool:
    """Train, measure and write texts; return whether the exact head's bound is the lower one at every T.

    `folder` is for the data and the models.
    """
    cuda = torch.cuda.is_available()
    sizes, device = (CUDA, "cuda") if cuda else (REHEARSAL, "cpu")
    data = folder / "data"
    evidence.keep(device=torch.cuda.get_device_name() if cuda else "cpu", torch=torch.__version__)
    corpus = Embedded() if texts is None else Files(paths=(str(texts),))
    prepared = Data(
        corpus=corpus, tokenizer=BPE(size=sizes.vocabulary), length=sizes.length,
        shares=Shares(validation=0.05, judge=0),
    )  # fmt: skip
    vocabulary = prepare(prepared, data, print).vocabulary
    schedule, tokenizer = LogLinear(), data / FILE

    torch.manual_seed(SEED)
    denoising = Denoising(Denoiser(sizes.network, vocabulary).to(device), schedule, SEED)
    weights = trained("denoiser", denoising, data, sizes, seconds, evidence)
    save_denoiser(folder / "denoiser", weights, sizes.network, schedule, sizes.length, tokenizer, {})
    next_token = NextToken(AutoregressiveModel(sizes.network, vocabulary).to(device))
    weights = trained("autoregressive", next_token, data, sizes, seconds, evidence)
    next_token.trained.load_state_dict({name: weight.to(device) for name, weight in weights.items()})

    opened = open_denoiser(folder / "denoiser")
    model = Model(opened.network, sizes.head.build(opened.network), schedule)
    head = ConditionalLikelihoodObjective(model, SEED).to(device)
    weights = trained("conditional", head, data, sizes, seconds, evidence)
    save_energy(folder / "conditional", weights, network_on(sizes.head, opened), sizes.length, tokenizer, {})

    denoiser = open_denoiser(folder / "denoiser")
    energy = open_energy(folder / "conditional", denoiser).to(device).eval()
    network = denoiser.network.to(device).eval()
    x0 = whole_rows(TokenFile.open(data, "validation"), sizes.length, sizes.rows, 0).tokens.to(device)
    evidence.estimate("autoregressive", autoregressive_nll(x0, next_token.trained.float().eval()), sizes.length)
    evidence.estimate("nelbo", nelbo(x0, network, schedule, SEED, 4), sizes.length)
    lower = True
    for steps in STEPS:
        plain, exact = Sampler(steps=steps), Sampler(steps=steps, candidates=EXACT)
        bounds = {
            "plain": sampler_bound(x0, network, None, schedule, plain, SEED, 1),
            "conditional, exact": sampler_bound(x0, network, energy, schedule, exact, SEED, 1),
        }
        means = [evidence.estimate(f"bound, T = {steps}, {name}", of, sizes.length) for name, of in bounds.items()]
        lower = lower and means[1] < means[0]

    bundle = Bundle(name=NAME, energy="conditional", sampler=Sampler(steps=STEPS[-1], candidates=EXACT))
    save_bundle(folder / "bundle", bundle, folder / "denoiser", {"conditional": folder / "conditional"})
    generator = load(folder / "bundle", device=device)
    with (evidence.folder / "texts.txt").open("w", encoding="utf-8") as file:
        for steps in STEPS:
            for name, k in (("plain", 1), ("conditional, exact", EXACT)):
                settings = {"n": sizes.texts, "max_tokens": sizes.length, "steps": steps, "candidates": k, "seed": 1}
                for text in generator.generate("", **settings):
                    file.write(f"--- T = {steps}, {name}\n{text.text}\n\n")
    return lower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--output", type=Path, default=Path(NAME))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lower = run(given.texts, given.seconds, Evidence(given.output), Path(folder))
    if not lower:
        sys.exit("the conditional head's bound is no lower than that of plain diffusion")


if __name__ == "__main__":
    main()
