"""Bundles with every kind of energy, exported, for tests of the way out and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, PreTrainedTokenizerFast, dynamic_module_utils

from edlm.checkpoints.energies import network_on, save_energy
from edlm.checkpoints.network_kinds import DenoiserConfig
from edlm.checkpoints.networks import open_denoiser, save_autoregressive, save_denoiser
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Bytes, Characters, TokenizerConfig
from edlm.energies.conditional import ConditionalEnergy, ConditionalEnergyConfig
from edlm.energies.configuration import AbstractEnergyConfig
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import AutoregressiveEnergyConfig, BidirectionalEnergyConfig, CarryOverEnergyConfig
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.models.denoiser import TransformerDenoiserConfig
from edlm.sampling.sampler import Sampler
from edlm.schedule import Cosine, LogLinear, ScheduleConfig
from tests.networks import TRANSFORMER, autoregressive, stirred
from workflows.export import Export, export

LENGTH = 12
CHARACTERS, LOG_LINEAR = Characters(), LogLinear()
SIZE = {"width": 16, "layers": 2, "heads": 2}
NETWORK = TransformerDenoiserConfig(**SIZE)
TIMED = TransformerDenoiserConfig(**SIZE, time_conditioning=True)
ENERGIES: Mapping[str, AbstractEnergyConfig] = {
    "blocks": StepEnergyConfig(block=4, width=16, layers=1, heads=2),
    "step": StepEnergyConfig(block=None, width=16, layers=1, heads=2),
    "conditional": ConditionalEnergyConfig(width=16, layers=1, heads=2, left=2, right=1),
    "residual": ResidualEnergyConfig(width=16, layers=1, heads=2),
    "nce": BidirectionalEnergyConfig(),
    "ar": AutoregressiveEnergyConfig(),
    "coar": CarryOverEnergyConfig(),
    "edlm_nce": EDLMEnergyConfig(width=16, layers=1, heads=2, conditioning_width=8, time_conditioning=True),
}
ENDS = 3.0  # added to the separator's logit, so that documents end within a canvas


def make_full_bundle(
    folder: Path,
    tokenizer: TokenizerConfig = CHARACTERS,
    network: DenoiserConfig = NETWORK,
    schedule: ScheduleConfig = LOG_LINEAR,
) -> Path:
    """Save a bundle with every kind of energy to `folder`/bundle, and return its folder."""
    built = tokenizer.build([])
    built.save(folder)
    net, file = stirred(network.build(built.size), seed=1), folder / FILE
    if built.separator is not None:
        with torch.no_grad():
            net.readout.bias[built.separator] += ENDS
    save_denoiser(folder / "denoiser", net.state_dict(), network, schedule, LENGTH, file, {"experiment": "full"})
    opened = open_denoiser(folder / "denoiser")
    causal = autoregressive(built.size)
    save_autoregressive(folder / "causal", causal.state_dict(), TRANSFORMER, LENGTH, file, {})
    folders: dict[str, Path] = {}
    for name, energy in ENERGIES.items():
        model = causal if energy.needs_autoregressive else None
        base = folder / "causal" if energy.needs_autoregressive else None
        if energy.needs_energy:
            base = folders["conditional"]
            model = stirred(ENERGIES["conditional"].build(opened.network), seed=3)
            assert isinstance(model, ConditionalEnergy)
        weights = stirred(energy.build(opened.network, model), seed=3).state_dict()
        folders[name] = folder / name
        save_energy(folders[name], weights, network_on(energy, opened, base), LENGTH, file, {})
    bundle = Bundle(name="full", energy="blocks", sampler=Sampler(steps=4, candidates=3))
    save_bundle(folder / "bundle", bundle, folder / "denoiser", folders)
    return folder / "bundle"


def make_timed_bundle(folder: Path) -> Path:
    """Save a bundle with a separator, another schedule and a denoiser that is conditioned on the time."""
    return make_full_bundle(folder, Bytes(), TIMED, Cosine())


def exported(bundle: Path, folder: Path, **settings) -> Path:
    """Export the bundle and return the repository."""
    export(bundle, folder, Export(**settings))
    return folder


@contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """Keep the copies that transformers makes of modelling files below `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(str(folder))
        yield


def opened(repository: Path) -> tuple:
    """The model and the tokenizer, as transformers opens them."""
    model = AutoModel.from_pretrained(repository, trust_remote_code=True)
    return model, PreTrainedTokenizerFast.from_pretrained(repository)
