import pytest
import torch

from edlm.checkpoints.energies import EnergyNetwork, open_energy, save_energy
from edlm.checkpoints.model_folder import TOKENIZER
from edlm.checkpoints.networks import open_autoregressive, open_denoiser, save_autoregressive, save_denoiser
from edlm.data.tokenizer_kinds import Bytes, Characters
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.residual import ResidualEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.whole_sequence import AutoregressiveEnergyConfig, BidirectionalEnergyConfig, CarryOverEnergyConfig
from edlm.schedule import Cosine
from tests.networks import TRUNK, autoregressive, denoiser, stirred

LENGTH, VOCABULARY = 12, 27


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    Characters().build(()).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer" / TOKENIZER


@pytest.fixture
def saved(tmp_path, tokenizer):
    net = denoiser(VOCABULARY)
    save_denoiser(tmp_path / "denoiser", net.state_dict(), TRUNK, Cosine(), LENGTH, tokenizer, {"note": "test"})
    return net, tmp_path / "denoiser"


def test_a_denoiser_opens_as_it_was_saved(saved):
    net, folder = saved
    opened = open_denoiser(folder)
    assert opened.schedule == Cosine()
    assert opened.length == LENGTH
    xt = torch.full((2, LENGTH), net.mask)
    assert torch.equal(opened.network.read(xt, torch.ones(2)), net.read(xt, torch.ones(2)))


@pytest.mark.parametrize(
    "config",
    [
        StepEnergyConfig(block=4, width=16),
        ConditionalEnergyConfig(width=16),
        ResidualEnergyConfig(width=16),
        BidirectionalEnergyConfig(),
        AutoregressiveEnergyConfig(),
        CarryOverEnergyConfig(),
    ],
)
def test_every_energy_opens_as_it_was_saved_on_its_denoiser(saved, tokenizer, tmp_path, config):
    net, folder = saved
    opened, model = open_denoiser(folder), autoregressive(VOCABULARY)
    trunk = model.trunk if config.needs_autoregressive else None
    base = ConditionalEnergyConfig(width=16) if config.needs_energy else None
    energy = stirred(config.build(net, model if base is None else base.build(net)), seed=5)
    card = EnergyNetwork(energy=config, denoiser_digest=opened.digest, autoregressive=trunk, base=base)
    save_energy(tmp_path / "energy", energy.state_dict(), card, LENGTH, tokenizer, {})
    again = open_energy(tmp_path / "energy", opened)
    xt = torch.full((2, LENGTH), net.mask)
    x = torch.randint(VOCABULARY, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    arguments = (x, xt, torch.ones(2), torch.zeros(2, 3, 1), net.read(xt, torch.ones(2)))
    assert torch.equal(again(*arguments), energy(*arguments))


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
    with pytest.raises(ValueError, match="holds a model of kind 'denoiser', and a 'autoregressive' is needed"):
        open_autoregressive(folder)
    model = autoregressive(VOCABULARY)
    save_autoregressive(tmp_path / "ar", model.state_dict(), TRUNK, LENGTH, tokenizer, {})
    x = torch.zeros(1, LENGTH, dtype=torch.long)
    assert torch.equal(open_autoregressive(tmp_path / "ar").log_p(x), model.log_p(x))


def test_weights_of_another_vocabulary_are_refused_by_name(tmp_path):
    other = tmp_path / "bytes"
    other.mkdir()
    Bytes().build(()).save(other)
    net = denoiser(VOCABULARY)
    save_denoiser(tmp_path / "wrong", net.state_dict(), TRUNK, Cosine(), LENGTH, other / TOKENIZER, {})
    with pytest.raises(ValueError, match=r"embedding.weight has shape \(28, 16\), expected"):
        open_denoiser(tmp_path / "wrong")
