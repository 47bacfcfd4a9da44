"""Truncated distributions hold the likeliest tokens alone, and only what tokens are drawn from is truncated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm import equations
from edlm.cooperative_work import run_to_end
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.token_temperature import tempered
from edlm.inference.token_truncation import truncated
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> TextGenerator:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("truncation")))


@pytest.fixture
def xt(generator):
    xt = torch.full((1, LENGTH), generator.mask)
    xt[0, ::3] = 4
    return xt


def context_of(generator, xt):
    return generator.denoiser.network.read(xt, torch.tensor([0.5]))


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    top_k=st.none() | st.integers(1, 8),
    top_p=st.floats(0, 1),
)
def test_the_fewest_likeliest_tokens_that_have_the_probability_keep_their_ratios(weights, top_k, top_p):
    p = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    actual = equations.truncated(p.log()[None], top_k, top_p)[0].exp()
    order = sorted(range(len(weights)), key=lambda token: -weights[token])[:top_k]
    kept, total = [], 0.0
    for token in order:
        if kept and total >= top_p * sum(weights[other] for other in order) - 1e-9:
            break
        kept.append(token)
        total += weights[token]
    if abs(total - top_p * sum(weights[other] for other in order)) < 1e-6:
        return  # which of two sets it is, rounding decides
    expected = torch.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()
    torch.testing.assert_close(actual, expected)


def test_of_equal_tokens_the_first_is_kept_and_what_is_no_number_stays_so():
    log_p = torch.tensor([[1.0, 3.0, 3.0], [0.0, torch.nan, 0.0]]).log_softmax(dim=-1)
    actual = equations.truncated(log_p, 1, 1.0)
    assert actual[0].tolist() == [-torch.inf, 0.0, -torch.inf]
    assert actual[1].isnan().all()


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (None, 0.6), (5, 0.8)])
def test_drafts_are_truncated_and_the_probabilities_of_given_tokens_are_not(generator, xt, top_k, top_p):
    view, where, context = truncated(generator, top_k, top_p), xt == generator.mask, context_of(generator, xt)
    plain, cut = (model.denoiser.network.log_p(context, where) for model in (generator, view))
    torch.testing.assert_close(cut, equations.truncated(plain, top_k, top_p))
    assert (cut == -torch.inf).any()
    x = torch.where(where, torch.arange(LENGTH) + 1, xt)[:, None]
    for name in generator.energies:
        log_p = torch.zeros(1, 1, 3 if name == "step" else 1)
        ours, theirs = (model.energies[name](x, xt, torch.tensor([0.5]), log_p, context) for model in (generator, view))
        torch.testing.assert_close(ours, theirs)


def test_exact_draws_are_truncated_token_by_token(generator, xt):
    view, where, context = truncated(generator, 2, 1.0), xt == generator.mask, context_of(generator, xt)
    last = where.clone()
    last[0, : int(torch.nonzero(where[0])[-1])] = False
    words = torch.arange(generator.denoiser.network.vocabulary)
    whole = generator.energies["conditional"].log_p(
        torch.where(last[:, None], words[None, :, None], xt[:, None]), xt, context
    )
    allowed = set(whole[0].topk(2).indices.tolist())
    u = torch.linspace(0, 0.999, 40, dtype=torch.float64)[:, None].expand(-1, LENGTH)
    energy, many = view.energies["conditional"], context.expand(40, -1, -1)
    drawn, log_p = run_to_end(energy.draw(xt.expand(40, -1), last.expand(40, -1), many, u))
    assert set(drawn[last.expand(40, -1)].tolist()) == allowed
    torch.testing.assert_close(log_p[last.expand(40, -1)].unique().exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize(("candidates", "energy"), [(1, None), (3, "step"), (3, "conditional"), (0, "conditional")])
def test_a_text_of_likeliest_tokens_is_that_of_temperature_zero_and_none_is_impossible(generator, candidates, energy):
    sampler = Sampler(steps=LENGTH, candidates=candidates)
    texts = truncated(generator, 1, 1.0).write((1, 2), 8, [1, 2, 3], sampler, energy)
    assert len(texts) == 3
    if candidates == 1:
        cold = tempered(generator, 0.0).write((1, 2), 8, [1, 2, 3], sampler, energy)
        assert [text.tokens for text in texts] == [text.tokens for text in cold]


def test_what_truncates_nothing_leaves_every_text_as_it_is(generator):
    sampler = Sampler(steps=3, candidates=2)
    same = truncated(generator, None, 1.0).write((1, 2), 8, [1, 2], sampler)
    assert [text.tokens for text in same] == [text.tokens for text in generator.write((1, 2), 8, [1, 2], sampler)]
