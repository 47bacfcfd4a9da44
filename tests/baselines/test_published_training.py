"""The plain training steps have the losses and the gradients of this project's."""

import pytest
import torch

from edlm.baselines.published_training import (
    PlainContrastive,
    PlainDenoising,
    PlainNextToken,
    PlainTrainer,
    masked_tokens,
    stratified_times,
)
from edlm.data.batches import Rows
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.interfaces import Model
from edlm.rng import Purpose, uniforms
from edlm.schedule import LogLinear, draw_times
from edlm.training.energy_objectives import ContrastiveObjective
from edlm.training.local_engine import LocalEngine
from edlm.training.objectives import Denoising, NextToken, noised
from tests.networks import autoregressive, denoiser, stirred
from tests.toy import training
from tests.training.objectives import L, N, V, rows

NEGATIVES = 3


def noise(step: int = 3):
    """Times and masked tokens of the objectives."""
    t = draw_times(0, step, torch.arange(N), N)
    return noised(0, rows(step=step), LogLinear().alpha(t), V), t


def contrastive() -> ContrastiveObjective:
    net = denoiser(V)
    energy = stirred(BidirectionalEnergyConfig().build(net), seed=3)
    return ContrastiveObjective(Model(net, energy, LogLinear()), NEGATIVES, "binary", seed=0)


def assert_same(ours, plain: torch.Tensor, given: Rows | None = None) -> None:
    loss, _ = ours(given or rows())
    torch.testing.assert_close(loss.float(), plain.float())
    weights = list(ours.trained.parameters())
    mine, theirs = (torch.autograd.grad(value, weights, allow_unused=True) for value in (loss, plain))
    for gradient, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_denoising():
    ours = Denoising(denoiser(V), LogLinear(), seed=0)
    plain = PlainDenoising(ours.trained, ours.schedule, torch.Generator())
    assert_same(ours, plain.loss(rows().tokens, *noise()))


def test_next_token():
    ours = NextToken(autoregressive(V))
    assert_same(ours, PlainNextToken(ours.trained)(rows().tokens))


def test_noise_contrastive_estimation():
    ours = contrastive()
    plain = PlainContrastive(ours.denoiser, ours.trained, ours.schedule, NEGATIVES, torch.Generator())
    xt, t = noise()
    chosen = torch.nonzero((xt == V).sum(dim=1) > 1)[:, 0]  # rows with at most one new token count in the plain loss
    x0, xt, t = rows().tokens[chosen], xt[chosen], t[chosen]
    u = uniforms(0, 3, chosen, Purpose.NEGATIVE, (NEGATIVES, L))
    masked, drawn = torch.nonzero(xt == V, as_tuple=True), xt[:, None].repeat(1, NEGATIVES, 1)
    context = ours.denoiser.read(xt, t)
    drawn[masked[0], :, masked[1]] = ours.denoiser.draw(context, xt == V, u[masked[0], :, masked[1]])[0]
    assert_same(ours, plain.loss(x0, xt, t, drawn), Rows(x0, 3, chosen, N))


def test_negatives_replace_masks_alone_and_follow_the_denoiser():
    ours = contrastive()
    plain = PlainContrastive(ours.denoiser, ours.trained, ours.schedule, 400, torch.Generator().manual_seed(0))
    xt, t = noise()
    drawn = plain.drawn(xt[:2], t[:2])
    masked = (xt[:2] == V)[:, None].expand_as(drawn)
    assert torch.equal(drawn[~masked], xt[:2, None].expand_as(drawn)[~masked])
    assert int(drawn.max()) < V
    p = ours.denoiser.log_p(ours.denoiser.read(xt[:2], t[:2]), xt[:2] == V).exp()
    rows_, at = torch.nonzero(xt[:2] == V, as_tuple=True)
    share = torch.nn.functional.one_hot(drawn[rows_, :, at], V).float().mean(dim=1)
    torch.testing.assert_close(share, p, rtol=0, atol=0.1)


def test_a_plain_step_is_that_of_the_engine():
    settings = training(batch=N, accumulation=1, learning_rate=1e-2, clip=0.3, ema=0.9, weight_decay=0.1)
    engine = LocalEngine(NextToken(autoregressive(V)), settings)
    model = autoregressive(V)
    trainer = PlainTrainer(PlainNextToken(model), list(model.parameters()), settings)
    for step in range(3):
        loss, _ = engine.backward(rows(step=step))
        engine.update(settings.learning_rate)
        assert trainer.step(rows(step=step).tokens) == pytest.approx(loss.item(), rel=1e-5)
    for ours, plain, mean, average in zip(
        engine.masters, trainer.weights, engine.average, trainer.averages, strict=True
    ):
        torch.testing.assert_close(ours, plain.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean, average, rtol=1e-4, atol=1e-5)


def plain_losses():
    """Yield every plain loss with the network that it trains."""
    generators = (torch.Generator().manual_seed(0) for _ in range(2))
    net, energy, model = denoiser(V), contrastive(), autoregressive(V)
    yield PlainDenoising(net, LogLinear(), next(generators)), net
    yield PlainNextToken(model), model
    yield PlainContrastive(energy.denoiser, energy.trained, LogLinear(), NEGATIVES, next(generators)), energy.trained


def test_in_bfloat16_the_passes_are_rounded_and_the_weights_are_not():
    for single, half in zip(plain_losses(), plain_losses(), strict=True):
        taken = []
        for (loss, network), precision in ((single, "float32"), (half, "bfloat16")):
            trainer = PlainTrainer(loss, list(network.parameters()), training(precision=precision, learning_rate=1e-2))
            before = [weight.detach().clone() for weight in trainer.weights]
            taken.append((trainer.step(rows().tokens), before, trainer.weights))
        (exact, _, moved), (rounded, before, weights) = taken
        assert exact != rounded
        assert rounded == pytest.approx(exact, rel=0.05)
        assert {weight.dtype for weight in weights} == {torch.float32}
        for start, expected, actual in zip(before, moved, weights, strict=True):
            assert torch.equal(start, expected) == torch.equal(start, actual), "each weight has its gradient"


def test_every_row_has_a_time_of_its_own_stratum_and_tokens_are_masked_at_its_rate():
    x0, generator = torch.zeros(50, 400, dtype=torch.long), torch.Generator().manual_seed(1)
    t = stratified_times(x0, generator)
    assert torch.equal((t * 50).floor().clamp(max=49), torch.arange(50.0))
    xt = masked_tokens(x0, 1 - t, V, generator)
    torch.testing.assert_close((xt == V).float().mean(dim=1), t, rtol=0, atol=0.1)
