"""Every tensor of a published checkpoint is accounted for, by its name; sizes follow from the tensors."""

import pytest
import torch

from edlm.published.layout import ROTARY, LayoutError, Sizes, heads_of, our_weights, sizes_of
from tests.published.checkpoints import HEADS, every_network, published, sizes

EVERY = [(network, name) for network in ("denoiser", "autoregressive", "energy") for name in sizes(network, 2).shapes()]


@every_network
@pytest.mark.parametrize("layers", [1, 4, 11])
def test_the_network_and_its_sizes_follow_from_the_tensors(network, layers):
    tensors = published(network, layers)
    assert sizes_of(tensors) == sizes(network, layers)
    assert heads_of(tensors, 40) == HEADS


@pytest.mark.parametrize(("network", "name"), EVERY)
def test_a_tensor_that_is_missing_misshapen_or_not_finite_is_named(network, name):
    tensors = published(network, 2)
    whole = tensors[name]
    del tensors[name]
    with pytest.raises(LayoutError, match=name.replace(".", r"\.")):
        sizes_of(tensors)
    tensors[name] = whole[..., :-1]
    with pytest.raises(LayoutError, match=r"\.\w+ has shape \(.*\), expected \("):
        sizes_of(tensors)
    tensors[name] = whole.clone()
    tensors[name].flatten()[-1] = torch.nan
    with pytest.raises(LayoutError, match=rf"{name} has 1 values of {whole.numel()} that are not finite"):
        sizes_of(tensors)
    tensors[name] = whole.long()
    with pytest.raises(LayoutError, match=rf"{name} has dtype torch.int64, no floating point"):
        sizes_of(tensors)


@every_network
def test_a_tensor_that_is_not_of_the_layout_is_named(network):
    tensors = published(network) | {"blocks.0.norm3.weight": torch.ones(40), "lora.weight": torch.ones(1)}
    with pytest.raises(LayoutError, match=r"blocks\.0\.norm3\.weight is not of this layout; lora.weight is not"):
        sizes_of(tensors)


def test_a_block_that_is_left_out_is_named():
    tensors = {name: value for name, value in published("denoiser", 3).items() if not name.startswith("blocks.1.")}
    with pytest.raises(LayoutError, match=r"with 2 blocks .*: blocks\.1\.norm1\.weight is missing; .*; and 12 more"):
        sizes_of(tensors)


def test_other_networks_are_refused_with_what_there_is():
    with pytest.raises(LayoutError, match=r"vocab_embed\.embedding is missing; there are: bert\.weight"):
        sizes_of({"bert.weight": torch.ones(1)})
    with pytest.raises(LayoutError, match="there are: no tensors"):
        sizes_of({})
    with pytest.raises(LayoutError, match=r"vocab_embed\.embedding has shape \(3,\), and a matrix is expected"):
        sizes_of({"vocab_embed.embedding": torch.ones(3)})


def test_a_network_without_blocks_is_refused():
    tensors = {name: value for name, value in published("denoiser", 1).items() if not name.startswith("blocks.")}
    with pytest.raises(LayoutError, match=r"with 0 blocks .*: they are too few"):
        sizes_of(tensors)


def test_rotary_frequencies_of_another_base_or_shape_are_refused():
    tensors = published("denoiser")
    assert heads_of({ROTARY: tensors[ROTARY].half()}, 40) == HEADS
    assert heads_of({}, 40) is None
    with pytest.raises(LayoutError, match=r"is not 10000\^\(-2i / 8\): this network turns"):
        heads_of({ROTARY: 1 / 500_000 ** (torch.arange(4) / 4)}, 40)
    with pytest.raises(LayoutError, match="heads of 6 do not fill 40"):
        heads_of({ROTARY: torch.ones(3)}, 40)


@every_network
def test_weights_are_float32_whatever_their_precision_was(network):
    tensors = {name: tensor.bfloat16() for name, tensor in published(network).items()}
    weights = our_weights(tensors, sizes_of(tensors), bos=0)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_autoregressive_model_has_no_row_for_the_mask_and_starts_after_the_token_of_its_rows():
    tensors = published("autoregressive")
    weights = our_weights(tensors, sizes_of(tensors), bos=4)
    embedding, out = tensors["vocab_embed.embedding"], tensors["output_layer.linear.weight"]
    assert torch.equal(weights["embedding.weight"], torch.cat([embedding[:-1], embedding[4:5]]))
    assert torch.equal(weights["readout.weight"], out[:-1])


def test_a_vocabulary_is_counted_without_the_mask():
    assert Sizes("denoiser", 50_258, 768, 12, 128).vocabulary == 50_257
