from dataclasses import replace

import pytest
import torch

from edlm import equations
from edlm.checkpoints.energies import EnergyNetwork, network_on, open_energy, save_energy
from edlm.checkpoints.model_folder import CARD, TOKENIZER, ModelCard, save_model
from edlm.checkpoints.networks import open_autoregressive, open_denoiser, save_autoregressive, save_denoiser
from edlm.config import ConfigurationError, load, plain
from edlm.data.tokenizer_kinds import Bytes, Characters
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.models.denoiser import Denoiser, TransformerDenoiserConfig
from edlm.schedule import Cosine
from tests.networks import KINDS, TRANSFORMER, autoregressive, base_of, denoiser, stirred

LENGTH, VOCABULARY = 12, 27


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    Characters().build(()).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer" / TOKENIZER


@pytest.fixture
def saved(tmp_path, tokenizer):
    net = denoiser(VOCABULARY)
    save_denoiser(tmp_path / "denoiser", net.state_dict(), TRANSFORMER, Cosine(), LENGTH, tokenizer, {"note": "test"})
    return net, tmp_path / "denoiser"


def test_a_denoiser_opens_as_it_was_saved(saved):
    net, folder = saved
    opened = open_denoiser(folder)
    assert opened.schedule == Cosine()
    assert opened.length == LENGTH
    xt = torch.full((2, LENGTH), net.mask)
    assert torch.equal(opened.network.read(xt, torch.ones(2)), net.read(xt, torch.ones(2)))


@pytest.mark.parametrize("older", [{"trunk": plain(TRANSFORMER)}, plain(TRANSFORMER)], ids=["nested", "without a kind"])
def test_folders_written_before_networks_had_kinds_open(saved, older):
    net, folder = saved
    card = replace(load(ModelCard, folder / CARD), network=older)
    save_model(folder, card, net.state_dict(), folder / TOKENIZER)
    opened = open_denoiser(folder).network
    assert isinstance(opened, Denoiser)
    assert opened.config == TransformerDenoiserConfig(**plain(TRANSFORMER))


def test_a_network_of_another_kind_is_refused_with_the_kinds_that_there_are(saved):
    net, folder = saved
    card = replace(load(ModelCard, folder / CARD), network={"kind": "recurrent"})
    save_model(folder, card, net.state_dict(), folder / TOKENIZER)
    with pytest.raises(ConfigurationError, match=r"network\.kind: there is no 'recurrent'.*transformer"):
        open_denoiser(folder)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_every_energy_opens_as_it_was_saved_on_its_denoiser_and_the_model_it_is_built_on(
    saved, tokenizer, tmp_path, config
):
    net, folder = saved
    opened, model, base = open_denoiser(folder), base_of(config, net), None
    if model is not None:
        base = tmp_path / "base"
        if config.needs_autoregressive:
            save_autoregressive(base, model.state_dict(), model.config, LENGTH, tokenizer, {})
        else:
            below = next(other for other in KINDS.values() if config.accepts(other))
            save_energy(base, model.state_dict(), network_on(below, opened, None), LENGTH, tokenizer, {})
    energy = stirred(config.build(net, model), seed=5)
    network = network_on(config, opened, base)
    save_energy(tmp_path / "energy", energy.state_dict(), network, LENGTH, tokenizer, {})
    again = open_energy(tmp_path / "energy", opened)
    xt = torch.full((2, LENGTH), net.mask)
    x = torch.randint(VOCABULARY, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    log_p = torch.zeros(2, 3, equations.group_count(LENGTH, energy.block))
    arguments = (x, xt, torch.ones(2), log_p, net.read(xt, torch.ones(2)))
    assert torch.equal(again(*arguments), energy(*arguments))


def test_an_energy_on_another_takes_that_ones_settings_from_its_folder(saved, tokenizer, tmp_path):
    net, folder = saved
    opened, below = open_denoiser(folder), ConditionalEnergyConfig(width=24, layers=1, heads=2, right=2)
    base = below.build(net)
    save_energy(tmp_path / "base", base.state_dict(), network_on(below, opened, None), LENGTH, tokenizer, {})
    network = network_on(ResidualEnergyConfig(width=16), opened, tmp_path / "base")
    energy = ResidualEnergyConfig(width=16).build(net, base)
    save_energy(tmp_path / "energy", energy.state_dict(), network, LENGTH, tokenizer, {})
    assert open_energy(tmp_path / "energy", opened).proposal.features.out_features == 24


def test_an_energy_of_another_denoiser_is_refused(saved, tokenizer, tmp_path):
    net, folder = saved
    card = EnergyNetwork(energy=BidirectionalEnergyConfig(), denoiser_digest="0" * 64)
    save_energy(
        tmp_path / "energy", BidirectionalEnergyConfig().build(net, None).state_dict(), card, LENGTH, tokenizer, {}
    )
    with pytest.raises(ValueError, match="was made for the denoiser 000000000000, not for"):
        open_energy(tmp_path / "energy", open_denoiser(folder))


def test_a_folder_of_another_kind_is_refused(saved, tokenizer, tmp_path):
    _, folder = saved
    with pytest.raises(
        ValueError,
        match="holds a model of kind 'denoiser', and a 'autoregressive' is needed; give the output of a stage",
    ):
        open_autoregressive(folder)
    model = autoregressive(VOCABULARY)
    save_autoregressive(tmp_path / "ar", model.state_dict(), TRANSFORMER, LENGTH, tokenizer, {})
    x = torch.zeros(1, LENGTH, dtype=torch.long)
    assert torch.equal(open_autoregressive(tmp_path / "ar").log_p(x), model.log_p(x))


def test_weights_of_another_vocabulary_are_refused_by_name(tmp_path):
    other = tmp_path / "bytes"
    other.mkdir()
    Bytes().build(()).save(other)
    net = denoiser(VOCABULARY)
    save_denoiser(tmp_path / "wrong", net.state_dict(), TRANSFORMER, Cosine(), LENGTH, other / TOKENIZER, {})
    with pytest.raises(ValueError, match=r"embedding.weight has shape \(28, 16\), expected"):
        open_denoiser(tmp_path / "wrong")
