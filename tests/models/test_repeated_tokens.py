import pytest
import torch

from edlm.models.denoiser import Denoiser
from edlm.models.float32_summed_layers import Embedding
from edlm.models.repeated_tokens import POSITIONS_PER_TOKEN, embed
from edlm.models.transformer import TransformerConfig
from tests.networks import stirred

V = 4
IDS = torch.tensor([[0, 1, 2, 3, 4, 4, 4], [3, 3, 0, 4, 4, 1, 2]])


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("documents", [None, torch.tensor([0, 0, 0, 1, 1, 1, 1]).expand(2, -1)])
def test_the_first_layer_projects_every_token_once_with_the_features_and_gradients_of_all_positions(documents, time):
    net = stirred(Denoiser(TransformerConfig(width=16, layers=2, heads=2, time_conditioning=time), V))
    t, index = torch.tensor([0.3, 0.8]), torch.nonzero(IDS == V, as_tuple=True)
    projected = []
    net.transformer.layers[0].qkv.register_forward_hook(lambda _module, inputs, _out: projected.append(inputs[0]))
    actual = net.features_at(IDS, t, index, documents)
    # With time, what a token becomes depends on its row.
    assert projected[0].shape == ((*IDS.shape, 16) if time else (V + 1, 16))
    whole = net.read(IDS, t) if documents is None else net.read_within(IDS, t, documents)
    torch.testing.assert_close(actual, whole[index])
    weights = [weight for name, weight in net.named_parameters() if not name.startswith("readout")]
    values = (value.square().sum() for value in (actual, whole[index]))
    ours, expected = (torch.autograd.grad(value, weights) for value in values)
    for mine, value in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_embedding_each_token_once_changes_no_bit_of_the_values(precision):
    embedding, ids = stirred(Embedding(V + 1, 8)).to(precision), IDS[:, :6]
    x, repeated = embed(embedding, ids)
    assert repeated is not None
    assert torch.equal(x, embedding(ids))
    assert torch.equal(repeated.spread(repeated.table), x)


def test_of_a_large_vocabulary_every_position_is_embedded():
    few = IDS[:1, : POSITIONS_PER_TOKEN * (V + 1) - 1]
    assert embed(Embedding(V + 1, 8), few)[1] is None
    assert embed(Embedding(V + 1, 8), IDS)[1] is not None
