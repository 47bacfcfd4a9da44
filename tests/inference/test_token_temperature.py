"""Token temperatures change the distribution of every token, and nothing of the model that they are a view of."""

import pytest
import torch

from edlm import equations
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.token_temperature import tempered
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> TextGenerator:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("tempering")))


def context_of(generator, xt):
    return generator.denoiser.network.read(xt, torch.tensor([0.5]))


@pytest.fixture
def xt(generator):
    xt = torch.full((1, LENGTH), generator.mask)
    xt[0, ::3] = 4
    return xt


@pytest.mark.parametrize("temperature", [0.01, 0.7, 2.0])
def test_every_token_has_the_distribution_of_divided_logits(generator, xt, temperature):
    view, where = tempered(generator, temperature), xt == generator.mask
    plain, warm = (model.denoiser.network.log_p(context_of(model, xt), where) for model in (generator, view))
    torch.testing.assert_close(
        warm, torch.log_softmax(plain.double() / temperature, dim=-1).float(), rtol=1e-4, atol=1e-4
    )


def test_at_zero_each_token_is_the_likeliest(generator, xt):
    view, where = tempered(generator, 0.0), xt == generator.mask
    log_p, context = generator.denoiser.network.log_p(context_of(generator, xt), where), context_of(view, xt)
    assert torch.equal(view.denoiser.network.log_p(context, where).exp().argmax(dim=-1), log_p.argmax(dim=-1))
    assert torch.equal(view.denoiser.network.log_p(context, where).exp().sum(dim=-1), torch.ones(int(where.sum())))
    tokens, actual = view.denoiser.network.draw(context, where, torch.rand(int(where.sum()), 3, dtype=torch.float64))
    assert torch.equal(tokens, log_p.argmax(dim=-1)[:, None].expand(-1, 3))
    assert (actual == 0).all()


def test_logits_that_are_no_numbers_stay_so():
    logits = torch.tensor([[torch.nan, 1.0], [0.0, 1.0]])
    for temperature in (0.0, 0.5):
        log_p = equations.substitute(equations.tempered(logits, temperature))
        assert log_p.isnan().any(dim=-1).tolist() == [True, False]


def test_of_equal_tokens_the_first_is_the_likeliest():
    assert equations.tempered(torch.tensor([[1.0, 3.0, 3.0]]), 0.0).tolist() == [[-torch.inf, 0.0, -torch.inf]]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_a_conditional_energy_is_that_of_its_own_tempered_distribution(generator, xt, temperature):
    plain, warm = generator.energies["conditional"], tempered(generator, temperature).energies["conditional"]
    context, last = context_of(generator, xt), xt == generator.mask
    last[0, : int(torch.nonzero(last[0])[-1])] = False  # one new token, so that its distribution can be listed
    words = torch.arange(generator.denoiser.network.vocabulary)
    x = torch.where(last[:, None], words[None, :, None], xt[:, None])
    distribution = plain.log_p(x, xt, context)[0].double()
    assert distribution.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    expected = (
        torch.log_softmax(distribution / temperature, 0)
        if temperature
        else (distribution == distribution.max()).double().log()
    )
    torch.testing.assert_close(warm.log_p(x, xt, context)[0], expected.float(), rtol=1e-4, atol=1e-4)


def test_a_view_shares_weights_and_leaves_its_model_as_it_is(generator):
    view = tempered(generator, 0.5)
    assert view.denoiser.network.readout.temperature == 0.5
    assert generator.denoiser.network.readout.temperature == 1.0
    for first, other in [
        (generator.denoiser.network, view.denoiser.network),
        *zip(generator.energies.values(), view.energies.values(), strict=True),
    ]:
        addresses = {weight.data_ptr() for weight in first.parameters()}
        assert {weight.data_ptr() for weight in other.parameters()} == addresses
    sampler = Sampler(steps=3, candidates=2)
    written = generator.write((1, 2), 8, [1, 2], sampler)
    assert [text.tokens for text in tempered(generator, 1.0).write((1, 2), 8, [1, 2], sampler)] == [
        text.tokens for text in written
    ]


@pytest.mark.parametrize(("candidates", "energy"), [(1, None), (3, "step"), (3, "conditional"), (0, "conditional")])
def test_texts_grow_alike_as_it_gets_colder(generator, candidates, energy):
    sampler, seeds = Sampler(steps=4, candidates=candidates), range(24)

    def distinct(temperature: float) -> int:
        texts = tempered(generator, temperature).write((), LENGTH, seeds, sampler, energy)
        return len({letter for text in texts for letter in enumerate(text.tokens)})

    assert distinct(0.05) < distinct(0.7) < distinct(2.0)
