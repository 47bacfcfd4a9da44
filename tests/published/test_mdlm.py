"""MDLM's denoiser has the published logits, and behaves as a denoiser of this project."""

import math

import pytest
import torch

from edlm.checkpoints.model_folder import load_into
from edlm.data.batches import Rows
from edlm.interfaces import ReadsSelected
from edlm.models.autoregressive import AutoregressiveModel
from edlm.models.transformer import TransformerConfig
from edlm.published.layout import heads_of, our_weights, sizes_of
from edlm.published.mdlm import MDLMDenoiser, MDLMDenoiserConfig
from edlm.schedule import LogLinear
from edlm.training.objectives import Denoising
from tests.networks import stirred
from tests.published.checkpoints import HEADS, TOKENS, every_golden, golden, published, reference

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def opened(tensors: dict[str, torch.Tensor], time_conditioning: bool) -> MDLMDenoiser:
    sizes = sizes_of(tensors)
    config = MDLMDenoiserConfig(
        width=sizes.width,
        layers=sizes.layers,
        heads=heads_of(tensors, sizes.width) or 0,
        conditioning_width=sizes.conditioning_width or 0,
        time_conditioning=time_conditioning,
    )
    net = config.build(sizes.vocabulary)
    load_into(net, our_weights(tensors, sizes))
    return net.eval()


def opened_autoregressive(tensors: dict[str, torch.Tensor], bos: int = 0) -> AutoregressiveModel:
    sizes = sizes_of(tensors)
    config = TransformerConfig(width=sizes.width, layers=sizes.layers, heads=heads_of(tensors, sizes.width) or 0)
    model = AutoregressiveModel(config, sizes.vocabulary)
    load_into(model, our_weights(tensors, sizes, bos))
    return model.eval()


def noisy(time_conditioning: bool):
    g = torch.Generator().manual_seed(1)
    x0, t = torch.randint(TOKENS, (4, 9), generator=g), torch.tensor([0.01, 0.3, 0.9, 1.0])
    masked = torch.rand(4, 9, generator=g) < 0.6
    sigma = -torch.log(1 - (1 - 1e-3) * t.double()) if time_conditioning else torch.zeros(4)
    return torch.where(masked, TOKENS, x0), t, sigma, masked


@every_golden
def test_the_denoisers_logits_and_log_probabilities_are_the_published_ones(layout):
    tensors, values, time_conditioning = golden(layout, "mdlm_denoiser")
    net = opened(tensors, time_conditioning)
    features = net.read(values["xt"], values["t"])
    logits = torch.nn.functional.linear(features, net.readout.weight, net.readout.bias)
    torch.testing.assert_close(logits, values["denoiser_logits"], atol=TOLERANCE, rtol=0)
    masked = values["xt"] == net.mask
    log_p = values["denoiser_log_p_at_masked"][:, :-1]  # the mask, last, has none
    torch.testing.assert_close(net.log_p(features, masked), log_p, atol=TOLERANCE, rtol=0)
    nats = -net.log_p_of(features, masked, values["x0"]).sum(dim=1)
    torch.testing.assert_close(nats, values["nll_at_masked"], atol=TOLERANCE, rtol=1e-6)


@every_golden
def test_the_autoregressive_models_log_probabilities_are_the_published_ones(layout):
    tensors, values, _ = golden(layout, "mdlm_ar")
    model, x = opened_autoregressive(tensors), values["x0"]
    log_p = model.distribution(model.features(x[:, :-1]), torch.ones_like(x[:, 1:]).bool()).unflatten(0, (len(x), -1))
    torch.testing.assert_close(log_p, values["ar_log_p"][..., :-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_random_weights_of_another_shape_give_the_logits_of_the_description(time_conditioning):
    tensors = published("denoiser")
    net, (xt, t, sigma, masked) = opened(tensors, time_conditioning), noisy(time_conditioning)
    log_p = reference(tensors, xt, sigma)[..., :-1].log_softmax(dim=-1)[masked]
    torch.testing.assert_close(net.log_p(net.read(xt, t), masked), log_p, atol=2e-5, rtol=0)
    assert (net.config.heads, net.config.width, net.config.layers) == (HEADS, 40, 3)


def test_the_time_matters_with_time_conditioning_only():
    xt, t, _, _ = noisy(True)
    for time_conditioning in (False, True):
        net = opened(published("denoiser"), time_conditioning)
        assert torch.equal(net.read(xt, t), net.read(xt, t / 2)) != time_conditioning


def test_the_noise_at_t_1_is_that_of_the_papers_schedule_and_finite():
    net, (xt, _, _, _) = opened(published("denoiser"), True), noisy(True)
    sigma = torch.full((4,), -math.log(1e-3))
    logits = reference(published("denoiser"), xt, sigma)[..., :-1]
    log_p = net.log_p(net.read(xt, torch.ones(4)), xt >= 0)
    torch.testing.assert_close(log_p, logits.log_softmax(dim=-1).flatten(0, 1), atol=2e-5, rtol=0)


def test_random_autoregressive_weights_score_every_token_and_the_first_after_bos():
    tensors, bos = published("autoregressive"), 3
    model, x = opened_autoregressive(tensors, bos), torch.randint(TOKENS, (4, 9), generator=torch.Generator())
    read = torch.cat([torch.full((4, 1), bos), x[:, :-1]], dim=1)
    log_p = reference(tensors, read, torch.zeros(4))[..., :-1].log_softmax(dim=-1)
    torch.testing.assert_close(model.log_p(x), log_p.gather(-1, x[..., None])[..., 0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_features_at_some_positions_are_those_of_the_whole_pass(time_conditioning):
    net, (xt, t, _, masked) = opened(published("denoiser"), time_conditioning), noisy(time_conditioning)
    assert isinstance(net, ReadsSelected)
    where = masked & (torch.arange(9) % 2 == 0)
    torch.testing.assert_close(net.read_at(xt, t, where)[where], net.read(xt, t)[where], atol=TOLERANCE, rtol=TOLERANCE)


def test_features_within_documents_are_those_of_each_document_alone():
    net, (xt, t, _, _) = opened(published("denoiser"), True), noisy(True)
    documents = (torch.arange(9) >= 4).long().expand(4, -1)
    apart = torch.cat([net.read(xt[:, :4], t), net.read(xt[:, 4:], t)], dim=1)
    torch.testing.assert_close(net.read_within(xt, t, documents), apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_in_bfloat16_the_log_probabilities_are_the_same_within_its_rounding(time_conditioning):
    xt, t, _, masked = noisy(time_conditioning)
    exact, rounded = (opened(published("denoiser"), time_conditioning) for _ in range(2))
    rounded.bfloat16()
    log_p = rounded.log_p(rounded.read(xt, t), masked)
    assert log_p.dtype == torch.float32
    assert (log_p.exp() - exact.log_p(exact.read(xt, t), masked).exp()).abs().max() < 0.05


def test_the_mask_has_no_probability_whatever_its_logit():
    tensors, (xt, t, _, masked) = published("denoiser"), noisy(False)
    before = opened(tensors, False).log_p(opened(tensors, False).read(xt, t), masked)
    tensors["output_layer.linear.bias"][-1] = 1000.0
    net = opened(tensors, False)
    assert torch.equal(net.log_p(net.read(xt, t), masked), before)
    tokens, _ = net.draw(net.read(xt, t), masked, torch.rand(int(masked.sum()), 50, dtype=torch.float64))
    assert tokens.max() < TOKENS


def test_every_weight_of_a_fresh_network_has_a_gradient_after_one_step_of_training():
    torch.manual_seed(0)
    net = MDLMDenoiserConfig(width=16, layers=2, heads=2, conditioning_width=8, time_conditioning=True).build(TOKENS)
    objective = Denoising(net, LogLinear(), seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    rows = Rows(tokens=torch.randint(TOKENS, (8, 6)), batch_index=torch.arange(8), global_batch_size=8, step=0)
    for _ in range(4):  # the LM head is zero at first, then the gates, then what is behind them
        optimizer.zero_grad()
        objective(rows)[0].backward()
        optimizer.step()
    gradients = {name: weight.grad for name, weight in net.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.any()] == []


def test_every_weight_has_a_say():
    net = stirred(MDLMDenoiserConfig(width=16, layers=1, heads=2, conditioning_width=8).build(TOKENS))
    xt, t, _, masked = noisy(False)
    before = net.log_p(net.read(xt, t), masked)
    for name, weight in net.named_parameters():
        kept = weight.clone()
        weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        assert not torch.equal(net.log_p(net.read(xt, t), masked), before), name
        weight.copy_(kept)
