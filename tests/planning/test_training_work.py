"""What a step keeps for its backward pass is what autograd saves."""

import pytest
import torch

from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.denoiser import Denoiser
from edlm.models.transformer import TransformerConfig
from edlm.planning.training_work import training_work, transformer_kept
from edlm.schedule import LogLinear
from edlm.training.objectives import Denoising, NextToken

LENGTH, BATCH, VOCABULARY = 64, 8, 11


def kept_elements(network, x) -> int:
    """Elements of the tensors that autograd saves, each storage once, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tensor.dtype.is_floating_point and storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes() // tensor.element_size(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = network.transformer(network.embedding(x), torch.full((len(x),), 0.5))
    del features
    return sum(count for count, _ in saved.values())


@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize(("width", "layers"), [(32, 1), (64, 3)])
def test_a_transformer_keeps_what_the_formula_says(width, layers, time_conditioning):
    config = TransformerConfig(width=width, layers=layers, heads=2, time_conditioning=time_conditioning)
    network = Denoiser(config, VOCABULARY)
    x = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    expected = transformer_kept(config, BATCH * LENGTH)
    assert kept_elements(network, x) == pytest.approx(expected, rel=0.1)


def test_networks_without_weights_have_the_same_work():
    config = TransformerConfig(width=32, layers=2, heads=2)
    for make in (
        lambda: Denoising(Denoiser(config, VOCABULARY), LogLinear(), seed=0),
        lambda: NextToken(AutoregressiveModel(config, VOCABULARY)),
    ):
        objective = make()
        with torch.device("meta"):
            empty = make()
        assert all(parameter.is_meta for parameter in empty.parameters())
        work = training_work(empty, BATCH, LENGTH)
        assert work == training_work(objective, BATCH, LENGTH)
        assert work.trained == sum(parameter.numel() for parameter in objective.parameters())
        assert work.matrices == config.layers * 12 * config.width**2


def test_the_work_of_an_unknown_network_is_not_known():
    class Unknown(torch.nn.Module):
        trained = torch.nn.Linear(2, 2)

    assert training_work(Unknown(), BATCH, LENGTH) is None
