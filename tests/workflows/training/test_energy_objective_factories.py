"""Every energy of the union goes from its entry in an experiment to training, a model folder and a bound."""

import pytest
import torch

from edlm.checkpoints.energies import network_on, open_energy, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import open_denoiser, save_autoregressive, save_denoiser
from edlm.data.preparation import Data, prepare
from edlm.data.splits import Shares
from edlm.data.synthetic import Markov
from edlm.data.tokenizer_kinds import Symbols
from edlm.likelihood.bounds import sampler_bound
from edlm.sampling.sampler import Sampler
from edlm.schedule import LogLinear
from edlm.storage import publish
from edlm.training.local_training import train
from edlm.training.settings import Training
from tests.networks import KINDS, TRANSFORMER, autoregressive, denoiser
from workflows.experiment import Finetune
from workflows.training.energy_objective_factories import finetune_objective, fresh_energy

V, LENGTH = 4, 8
SETTINGS = Training(steps=2, batch=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared data, a denoiser and an autoregressive model."""
    folder = tmp_path_factory.mktemp("models")
    source = Markov(symbols=V, length=LENGTH, sequences=300)
    shares = Shares(validation=0.2, judge=0.0)
    data = Data(corpus=source, tokenizer=Symbols(size=V), length=LENGTH, shares=shares)
    prepare(data, folder / "data", lambda _: None)
    tokenizer = folder / "data" / TOKENIZER
    save_denoiser(folder / "denoiser", denoiser(V).state_dict(), TRANSFORMER, LogLinear(), LENGTH, tokenizer, {})
    save_autoregressive(folder / "autoregressive", autoregressive(V).state_dict(), TRANSFORMER, LENGTH, tokenizer, {})
    for name in ("denoiser", "autoregressive"):
        publish(folder / name, str(folder / name))
    return folder


def make(folder, kind: str) -> None:
    """Train the energy, on the one that it needs, and save it, as the finetune stage does."""
    config, base = KINDS[kind], None
    if config.needs_autoregressive:
        base = folder / "autoregressive"
    elif config.needs_energy:
        below = next(name for name, other in KINDS.items() if config.accepts(other))
        base = folder / below
        if not base.exists():
            make(folder, below)
    name = base.name if base is not None and config.needs_energy else None
    entry = Finetune(name=kind, energy=config, base=name, training=SETTINGS if config.trained else None, negatives=2)
    opened, uri = open_denoiser(folder / "denoiser"), None if base is None else str(base)
    weights = {}
    if config.trained:
        objective = finetune_objective(entry, str(folder / "denoiser"), uri, 0, initial=None)
        weights = train(objective, folder / "data", SETTINGS, say=lambda _: None)
    whole = {**fresh_energy(entry, opened, uri, 0).state_dict(), **weights}
    network = network_on(config, opened, base)
    save_energy(folder / kind, whole, network, LENGTH, opened.folder / TOKENIZER, {})
    publish(folder / kind, str(folder / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_energy_goes_from_its_entry_to_a_bound(folder, kind):
    if not (folder / kind).exists():
        make(folder, kind)
    opened = open_denoiser(folder / "denoiser")
    energy = open_energy(folder / kind, opened)
    assert not any(weight.requires_grad for weight in energy.parameters())
    x0 = torch.randint(V, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    sampler = Sampler(steps=2, candidates=3)
    bound = sampler_bound(x0, opened.network, energy, opened.schedule, sampler, seed=0, draws=1).values
    assert bound.isfinite().all()
    if KINDS[kind].trained:  # two steps have moved it away from plain diffusion
        plain = sampler_bound(x0, opened.network, None, opened.schedule, Sampler(steps=2), seed=0, draws=1).values
        assert not torch.equal(bound, plain)
