"""Untrained bundles of any size: the cost of a pass does not depend on what was learned."""

from pathlib import Path

import torch

from edlm.checkpoints.energies import network_on, save_energy
from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Characters
from edlm.energies.step import StepEnergyConfig
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from workflows.benchmarking.sampling import BLOCK, LIGHT_HEADS, STEP, Sampling, untrained

NAME = "untrained"


def untrained_bundle(folder: Path, width: int, layers: int, head_width: int, length: int, seed: int) -> Path:
    """Write a bundle of 27 characters with a step energy, the same for the same seed, and return its path."""
    tokenizer = Characters().build([])
    tokenizer.save(folder)
    sizes = Sampling(width=width, layers=layers, head_width=head_width, seed=seed)
    built = untrained(sizes, tokenizer.size, torch.device("cpu"))
    denoiser_folder, energy_folder = folder / "denoiser", folder / "step"
    weights = built.denoiser.state_dict()
    save_denoiser(denoiser_folder, weights, sizes.transformer, LogLinear(), length, folder / FILE, {})
    energy = StepEnergyConfig(block=BLOCK, width=head_width, layers=1, heads=LIGHT_HEADS)
    network = network_on(energy, open_denoiser(denoiser_folder))
    save_energy(energy_folder, built.energies[STEP].state_dict(), network, length, folder / FILE, {})
    save_bundle(
        folder / "bundle",
        Bundle(name=NAME, energy="step", sampler=Sampler(steps=16)),
        denoiser_folder,
        {"step": energy_folder},
    )
    return folder / "bundle"
