"""A tiny bundle with random weights, for tests of generation and serving."""

from collections.abc import Sequence
from pathlib import Path

from edlm.checkpoints.energies import network_on, save_energy
from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Characters, TokenizerConfig
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.inference.components import Bundle, DataCard
from edlm.inference.generator import save_bundle
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.networks import TRANSFORMER, denoiser, stirred

LENGTH = 12
CHARACTERS = Characters()
ENERGIES = {
    "step": StepEnergyConfig(block=4, width=16, layers=1, heads=2),
    "conditional": ConditionalEnergyConfig(width=16, layers=1, heads=2),
}


def save_models(
    folder: Path, tokenizer: TokenizerConfig = CHARACTERS, length: int = LENGTH, texts: Sequence[str] = ()
) -> tuple[Path, dict[str, Path]]:
    """Save a denoiser and two energies for it to `folder`, and return their folders; `texts` train the tokenizer."""
    built = tokenizer.build(texts)
    built.save(folder)
    model = folder / "denoiser"
    save_denoiser(model, denoiser(built.size).state_dict(), TRANSFORMER, LogLinear(), length, folder / FILE, {})
    opened = open_denoiser(model)
    folders = {}
    for name, energy in ENERGIES.items():
        folders[name] = folder / name
        network = network_on(energy, opened)
        weights = stirred(energy.build(opened.network, None), seed=3).state_dict()
        save_energy(folders[name], weights, network, length, folder / FILE, {})
    return model, folders


def make_bundle(
    folder: Path,
    name: str = "tiny",
    tokenizer: TokenizerConfig = CHARACTERS,
    length: int = LENGTH,
    texts: Sequence[str] = (),
    data: DataCard | None = None,
) -> Path:
    """Save a bundle that scores with its step energy to `folder`/bundle, and return its folder."""
    model, energies = save_models(folder / "models", tokenizer, length, texts)
    bundle = Bundle(name=name, energy="step", sampler=Sampler(steps=4, candidates=2), data=data)
    save_bundle(folder / "bundle", bundle, model, energies)
    return folder / "bundle"


def make_plain_bundle(folder: Path) -> Path:
    """Write a bundle of the denoiser alone, which generates by plain diffusion, and return its folder."""
    model, _ = save_models(folder / "models")
    save_bundle(folder / "bundle", Bundle(name="plain", sampler=Sampler(steps=4)), model, {})
    return folder / "bundle"
