"""Reward against nats: the figure of docs/guides/steer-with-a-reward.md, with the classifiers of that page.

python -m workflows.benchmarking.steering FOLDER    # minutes; FOLDER keeps the trained denoiser
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import edlm
from edlm.checkpoints.networks import save_denoiser
from edlm.data.corpus_embedded import Embedded
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.token_file import TokenFile
from edlm.data.tokenizer_kinds import Characters
from edlm.energies.compose import WeightedSum
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.inference.language_model import LanguageModel
from edlm.likelihood.estimate import Estimate, difference
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.schedule import LogLinear
from edlm.training.objectives import Denoising
from edlm.training.settings import Training

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "steer-with-a-reward.md"
BLOCK = re.compile(r"<!-- runs on a small model -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WEIGHTS, CANDIDATES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0), (4, 32)
STEPS, WINDOW = 2, (0.0, 0.5)  # the last step chooses: it keeps all of a draft
GENERATED, HELD_OUT = 128, 64  # texts
TRAINING = Training(steps=500, batch=48, learning_rate=3e-3, warmup_steps=50, ema=0.99)


def trained(folder: Path) -> LanguageModel:
    """Return the model in `folder`, trained first if it is not there."""
    if not (folder / "bundle").is_dir():
        data = Data(corpus=Embedded(), tokenizer=Characters(), length=64, shares=Shares(validation=0.1, judge=0))
        vocabulary = prepare(data, folder / "data", progress=print).vocabulary
        torch.manual_seed(0)
        network = TransformerConfig(width=96, layers=3, heads=4)
        weights = edlm.train(Denoising(Denoiser(network, vocabulary), LogLinear(), seed=0), folder / "data", TRAINING)
        tokenizer = folder / "data" / "tokenizer.json"
        save_denoiser(folder / "denoiser", weights, network, LogLinear(), data.length, tokenizer, facts={})
        save_bundle(folder / "bundle", Bundle(name="python", sampler=edlm.Sampler(steps=8)), folder / "denoiser", {})
    return edlm.load(folder / "bundle")


@dataclass(frozen=True)
class Steered:
    """Texts generated with a reward, and the bound on held-out texts of the sampler that generated them."""

    bound: Estimate
    steering: float
    """Mean P(topic) by the classifier that is the reward."""
    judge: float
    """Mean P(topic) by the classifier that learnt from other texts."""


def steered(model: LanguageModel, x0: torch.Tensor, names: dict[str, Any], k: int, weight: float) -> Steered:
    """Measure the sampler with k candidates and this weight of the reward."""
    energy, denoiser = WeightedSum([(weight, names["reward"])]), model.generator.denoiser
    sampler = edlm.Sampler(steps=STEPS, candidates=k, window=WINDOW)
    bound = edlm.sampler_bound(x0, denoiser.network, energy, denoiser.schedule, sampler, seed=0, draws=2)
    made = model.with_energy("topic", energy).generate(
        "", n=GENERATED, max_tokens=model.length, steps=STEPS, window=WINDOW, candidates=k, energy="topic", seed=0
    )
    texts = [text.text for text in made]
    steering, judge = (float(names[name].predict_proba(texts)[:, 1].mean()) for name in ("steering", "judge"))
    print(f"k = {k}, w = {weight:g}: {bound.mean / model.length:.3f} nats per token, {steering:.3f}, {judge:.3f}")
    return Steered(bound, steering, judge)


def main(folder: Path) -> None:
    """Train, measure and draw."""
    model, names = trained(folder), {}
    code = BLOCK.findall(GUIDE.read_text("utf-8"))[:2]  # the classifiers and the reward
    exec("".join(code).replace('"edlm-tiny@champion"', repr(str(folder / "bundle"))), names)
    tokens = torch.from_numpy(TokenFile.open(folder / "data", "validation").tokens.astype(np.int64))
    x0 = tokens[: len(tokens) // model.length * model.length].view(-1, model.length)
    x0 = x0[:: len(x0) // HELD_OUT][:HELD_OUT]
    rows = {k: [steered(model, x0, names, k, weight) for weight in WEIGHTS] for k in CANDIDATES}
    drawn(rows, model.length).savefig(GUIDE.with_suffix(".png"), dpi=110)


def drawn(rows: dict[int, list[Steered]], length: int) -> Figure:
    """Plot P(topic) of generated texts against the bound, a pair of lines per number of candidates."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for (k, points), colour in zip(rows.items(), ("tab:blue", "tab:orange"), strict=False):
        nats = [point.bound.mean / length for point in points]
        errors = [difference(point.bound, points[0].bound).standard_error / length for point in points]
        judge = [point.judge for point in points]
        axes.errorbar(nats, judge, xerr=errors, fmt="o-", color=colour, label=f"k = {k}, by the second classifier")
        axes.plot(nats, [point.steering for point in points], "--", color=colour, label=f"k = {k}, by the reward's own")
        for weight, x, y in zip(WEIGHTS, nats, judge, strict=True):
            axes.annotate(f"{weight:g}", (x, y), (4, -11), textcoords="offset points", fontsize=8)
    axes.set(xlabel="bound on held-out text, nats per token", ylabel="mean P(topic) of generated texts")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]))
