import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.models import readout
from edlm.models.attention import BY_ROW
from edlm.models.readout import LMHead
from edlm.models.rotary import Rotary
from edlm.models.transformer import Block, Transformer, TransformerConfig
from tests.networks import stirred


def features(transformer: TransformerConfig, causal: bool, x: torch.Tensor, t: float = 0.5) -> torch.Tensor:
    return stirred(Transformer(transformer, causal))(x, torch.full((x.shape[0],), t))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))


def test_a_causal_trunk_does_not_see_what_comes_later(x):
    changed = x.clone()
    changed[:, 4:] += 1
    transformer = TransformerConfig(width=16, layers=2, heads=2)
    torch.testing.assert_close(features(transformer, True, x)[:, :4], features(transformer, True, changed)[:, :4])
    assert not torch.allclose(features(transformer, False, x)[:, :4], features(transformer, False, changed)[:, :4])


def test_time_matters_only_with_time_conditioning(x):
    with_time = TransformerConfig(width=16, layers=2, heads=2, time_conditioning=True)
    without = TransformerConfig(width=16, layers=2, heads=2)
    assert not torch.allclose(features(with_time, False, x, 0.1), features(with_time, False, x, 0.9))
    assert torch.equal(features(without, False, x, 0.1), features(without, False, x, 0.9))


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_rows_are_computed_independently_to_the_last_bit(x, time, precision):
    net = stirred(Transformer(TransformerConfig(width=16, layers=2, heads=2, time_conditioning=time), causal=False)).to(
        precision
    )
    x = x.to(precision)
    t, where = torch.tensor([0.1, 0.5, 0.9]), torch.arange(7) < torch.tensor([[1], [4], [7]])
    whole, some = net(x, t), net(x, t, where)
    for row in range(3):
        assert torch.equal(net(x[row : row + 1], t[row : row + 1])[0], whole[row])
        assert torch.equal(net(x[row : row + 1], t[row : row + 1], where[row : row + 1])[0], some[row])


@settings(deadline=None)
@given(where=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=3, max_size=3), time=st.booleans())
def test_features_of_some_positions_are_those_of_the_whole_pass(where, time):
    torch.manual_seed(0)
    net = stirred(Transformer(TransformerConfig(width=16, layers=2, heads=2, time_conditioning=time), causal=False))
    x, t, where = torch.randn(3, 7, 16), torch.tensor([0.1, 0.5, 0.9]), torch.tensor(where)
    some = net(x, t, where)
    torch.testing.assert_close(some[where], net(x, t)[where])


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_features_at_an_index_are_those_of_the_whole_pass_with_their_gradients(x, causal, time):
    net = stirred(Transformer(TransformerConfig(width=16, layers=2, heads=2, time_conditioning=time), causal))
    t, documents = torch.tensor([0.1, 0.5, 0.9]), torch.arange(7).expand(3, -1) // 3
    index = torch.tensor([0, 0, 2]), torch.tensor([1, 6, 3])
    for within in (None, documents):
        expected, actual = net(x, t, documents=within)[index], net.at(x, t, index, within)
        torch.testing.assert_close(actual, expected)
        values = (value.square().sum() for value in (actual, expected))
        ours, whole = (torch.autograd.grad(value, list(net.parameters())) for value in values)
        for mine, value in zip(ours, whole, strict=True):
            torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("rows", [[0, 0, 2], [1] * 5, []])
def test_of_long_rows_only_the_queries_at_the_index_are_computed_with_the_same_features_and_gradients(rows, time):
    net = stirred(
        Transformer(TransformerConfig(width=16, layers=2, heads=2, time_conditioning=time), causal=False)
    ).double()
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, BY_ROW + 3, 16, generator=g, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9])
    x.requires_grad_()
    index = torch.tensor(rows, dtype=torch.long), torch.tensor([1, BY_ROW, 3, 4, 5][: len(rows)], dtype=torch.long)
    queries = []
    net.layers[1].qkv.register_forward_hook(lambda _module, _inputs, output: queries.append(output[0].shape[0]))
    actual = net.at(x, t, index)
    assert queries == [len(rows)]
    expected = net(x, t)[index]
    torch.testing.assert_close(actual, expected)
    values = (value.square().sum() for value in (actual, expected))
    inputs = [x, *net.parameters()]
    ours, whole = (torch.autograd.grad(value, inputs) for value in values)  # all of them, also of an empty index
    for mine, value in zip(ours, whole, strict=True):
        torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-5)


def test_an_invalid_model_serves_no_request(x):
    layer, valid = stirred(Block(16, 2)), torch.tensor([[True] * 5 + [False] * 2] * 3)
    changed = x.clone()
    changed[:, 5:] += 1
    turn = Rotary.at(torch.arange(7), 8)
    torch.testing.assert_close(
        layer(x, turn, valid=valid)[:, :5], layer(changed, turn, valid=valid)[:, :5], rtol=0, atol=0
    )
    torch.testing.assert_close(layer(x[:, :5], Rotary.at(torch.arange(5), 8)), layer(x, turn, valid=valid)[:, :5])


def test_a_causal_pass_does_not_see_what_stands_behind():
    layer = stirred(Block(16, 2))
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    turn = Rotary.at(torch.arange(7), 8)
    alone = layer(x[:, :5], Rotary.at(torch.arange(5), 8), causal=True)
    torch.testing.assert_close(alone, layer(x, turn, causal=True)[:, :5])


@pytest.mark.parametrize("m", [4, 7, 64, 700])
def test_one_row_of_the_mask_gives_the_bits_of_the_whole_mask(m):
    layer, g = stirred(Block(16, 2)), torch.Generator().manual_seed(m)
    x, valid = torch.randn(3, m, 16, generator=g), torch.arange(m) < torch.tensor([[m], [m // 2 + 1], [1]])
    q, k, v = layer._rotated(layer.qkv(x), turn := Rotary.at(torch.arange(m), 8))
    whole = valid[:, None, None].expand(-1, 1, m, -1).contiguous()
    expected = layer._joined(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=whole))
    assert torch.equal(layer.out(layer._attended(layer.qkv(x), turn, False, valid, None))[valid], expected[valid])


def test_where_nothing_is_valid_there_are_numbers_all_the_same(x):
    layer, valid = stirred(Block(16, 2)), torch.arange(7) < torch.tensor([[0], [7], [3]])
    y = layer(x, Rotary.at(torch.arange(7), 8), valid=valid)
    assert y.isfinite().all()
    assert torch.equal(y[1:], layer(x[1:], Rotary.at(torch.arange(7), 8), valid=valid[1:]))


@given(shift=st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_rotary_scores_depend_on_distances_alone(shift):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 6, 8, generator=g), torch.randn(1, 2, 6, 8, generator=g)
    at = torch.arange(6)
    turn, later = Rotary.at(at, 8), Rotary.at(at + shift, 8)
    scores = turn(q) @ turn(k).transpose(-1, -2)
    moved = later(q) @ later(k).transpose(-1, -2)
    torch.testing.assert_close(scores, moved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chunk", [8, 40, 2**24])
def test_chunks_of_the_vocabulary_change_neither_values_nor_gradients(chunk, monkeypatch):
    head = stirred(LMHead(16, 5))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(37, 16, generator=g, requires_grad=True)
    tokens = torch.randint(5, (37,), generator=g)
    expected = torch.log_softmax(x @ head.weight.T + head.bias, -1).gather(1, tokens[:, None])[:, 0]
    gradient = torch.autograd.grad(expected.sum(), (x, head.weight))
    monkeypatch.setattr(readout, "CHUNK", chunk)
    actual = head.log_p_of(x, tokens)
    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(torch.autograd.grad(actual.sum(), (x, head.weight)), gradient, strict=True):
        torch.testing.assert_close(mine, theirs)


@given(n=st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_a_positions_logits_do_not_depend_on_how_many_others_are_asked_for(n):
    readout = stirred(LMHead(16, 5))
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(readout.distribution(x[:n]), readout.distribution(x)[:n])


def test_a_width_that_rotary_cannot_pair_is_refused():
    with pytest.raises(ValueError, match="multiple of 2 x heads = 8"):
        TransformerConfig(width=20, heads=4)
