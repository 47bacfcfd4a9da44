"""A tiny bundle with random weights that has every kind of energy."""

from pathlib import Path

from torch import nn

from edlm.checkpoints.energies import EnergyNetwork, save_energy
from edlm.checkpoints.networks import open_denoiser, save_denoiser
from edlm.config import plain
from edlm.data.tokenizer import FILE
from edlm.data.tokenizer_kinds import Characters
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.edlm_nce import EDLMEnergyConfig
from edlm.energies.kinds import EnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import AutoregressiveEnergyConfig, BidirectionalEnergyConfig, CarryOverEnergyConfig
from edlm.inference.components import Bundle
from edlm.inference.generator import save_bundle
from edlm.models.autoregressive import TransformerAutoregressiveConfig
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from tests.networks import TRANSFORMER, autoregressive, denoiser, stirred

LENGTH = 12
AUTOREGRESSIVE = TransformerAutoregressiveConfig(**plain(TRANSFORMER))
CONDITIONAL = ConditionalEnergyConfig(width=16, layers=2, heads=2, right=1)
ENERGIES: dict[str, EnergyConfig] = {
    "step": StepEnergyConfig(block=4, width=16, heads=2),
    "conditional": CONDITIONAL,
    "residual": ResidualEnergyConfig(width=16, heads=2),
    "bidirectional": BidirectionalEnergyConfig(),
    "edlm_nce": EDLMEnergyConfig(width=16, layers=2, heads=2, conditioning_width=16),
    "ar": AutoregressiveEnergyConfig(),
    "coar": CarryOverEnergyConfig(),
}


def make_full_bundle(folder: Path) -> Path:
    """Save the bundle to `folder`/bundle, and return its folder."""
    tokenizer = Characters().build([])
    tokenizer.save(folder)
    model = folder / "denoiser"
    save_denoiser(model, denoiser(tokenizer.size).state_dict(), TRANSFORMER, LogLinear(), LENGTH, folder / FILE, {})
    opened, folders = open_denoiser(model), {}
    for name, energy in ENERGIES.items():
        network = EnergyNetwork(
            energy=energy,
            denoiser_digest=opened.digest,
            schedule=opened.schedule,
            autoregressive=AUTOREGRESSIVE if energy.needs_autoregressive else None,
            base=EnergyNetwork(energy=CONDITIONAL, denoiser_digest=opened.digest) if energy.needs_energy else None,
        )
        folders[name] = folder / name
        weights = _filled(network.build(opened.network)).state_dict()
        save_energy(folders[name], weights, network, LENGTH, folder / FILE, {})
    bundle = Bundle(name="full", energy="step", sampler=Sampler(steps=4, candidates=2))
    save_bundle(folder / "bundle", bundle, model, folders)
    return folder / "bundle"


def _filled(energy: nn.Module) -> nn.Module:
    if hasattr(energy, "model"):
        energy.model.load_state_dict(autoregressive(energy.model.vocabulary).state_dict())
        return energy
    return stirred(energy, seed=3)
