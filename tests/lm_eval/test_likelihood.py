"""A pair is scored canvas by canvas, with the numbers of `score` and of the generator's own canvases."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.config import ConfigurationError
from edlm.inference.generator import TextGenerator, open_bundle
from edlm.inference.settings import ResolvedSettings
from edlm.lm_eval.likelihood import Pair, PairScorer, canvases, encode_pair
from edlm.sampling.sampler import Sampler
from tests.bundles import LENGTH, make_bundle

PLAIN = ResolvedSettings(Sampler(steps=4), None)


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> TextGenerator:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("bundle")))


def scorer(generator, bound="sampler", settings=PLAIN, draws=4, rows=1) -> PairScorer:
    return PairScorer(generator, settings, bound, draws, seed=3, rows=rows)


@given(context=st.integers(0, 40), text=st.integers(1, 40), length=st.integers(2, 16))
def test_canvases_score_every_token_once_after_what_precedes_it(context, text, length):
    whole = tuple(range(context + text))
    parts = list(canvases(Pair(whole[:context], whole[context:]), length))
    assert sum((part.text for part in parts), ()) == whole[context:]
    start = context
    for part in parts:
        assert part.context == whole[start - len(part.context) : start]
        assert len(part.context) + len(part.text) <= length
        assert len(part.context) >= min(start, length // 2)  # as much as a generated text sees
        start += len(part.text)
    if context + text <= length:
        assert parts == [Pair(whole[:context], whole[context:])]


def test_a_pair_is_encoded_together_and_its_space_belongs_to_the_continuation(generator):
    read = generator.read
    assert encode_pair(generator.tokenizer, "ab", " cd") == Pair(read("ab"), read(" cd"))
    assert encode_pair(generator.tokenizer, "ab ", "cd") == Pair(read("ab"), read(" cd"))
    assert encode_pair(generator.tokenizer, "", "cd") == Pair((), read("cd"))


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        ResolvedSettings(Sampler(steps=3, candidates=2), "step"),
        ResolvedSettings(Sampler(steps=3, candidates=0), "conditional"),
    ],
)
@pytest.mark.parametrize("context", ["", "abc "])
@pytest.mark.parametrize("draws", [4, 18])
def test_a_bound_is_that_of_score_to_the_bit(generator, settings, context, draws):
    pair = Pair(generator.read(context), generator.read("hello"))
    own = generator.score(pair.text, 3, draws, settings.sampler, settings.energy, prompt=pair.context)
    for bound in ("sampler", "nelbo"):
        (actual,) = scorer(generator, bound, settings, draws).score([pair])
        expected = own.bound if bound == "sampler" else own.nelbo
        assert torch.equal(actual.nll.values, expected.values)
        assert actual.standard_error == expected.standard_error > 0
        assert (actual.canvases, actual.cut) == (1, False)


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("settings", [PLAIN, ResolvedSettings(Sampler(steps=3, candidates=0), "conditional")])
def test_an_exact_likelihood_is_that_of_score_whatever_shares_its_pass(generator, settings, rows):
    pairs = [Pair(generator.read(a), generator.read(b)) for a, b in (("ab", "cd"), ("", "efgh"), ("abc", "d"))]
    actual = scorer(generator, "exact_order", settings, rows=rows).score(pairs)
    for pair, one in zip(pairs, actual, strict=True):
        own = generator.score(pair.text, 9, 2, settings.sampler, settings.energy, prompt=pair.context, exact_order=True)
        assert one.nll.mean == pytest.approx(own.exact_order, rel=1e-6)
        assert one.standard_error == 0


def test_a_text_of_several_canvases_is_the_sum_of_its_parts_and_says_what_was_cut(generator):
    context, text = generator.read("the context is too long "), generator.read("and so is the text")
    parts = list(canvases(Pair(context, text), LENGTH))
    assert len(parts) > 2
    whole, *rest = scorer(generator).score([Pair(context, text), *parts])
    torch.testing.assert_close(whole.nll.values, torch.stack([one.nll.values for one in rest]).sum(dim=0))
    assert (whole.canvases, whole.cut) == (len(parts), True)
    assert not any(one.cut for one in rest)
    (short,) = scorer(generator).score([Pair(context, text[:3])])
    assert (short.canvases, short.cut) == (1, True)


def test_the_text_that_is_generated_greedily_in_that_order_is_greedy_and_another_is_not(generator):
    network, schedule = generator.denoiser.network, generator.denoiser.schedule
    context, xt = generator.read("ab"), torch.full((1, 6), generator.mask)
    xt[0, :2] = torch.tensor(context)
    for i in range(4, 0, -1):  # a token in each of four steps
        log_p = network.log_p(network.read(xt, torch.tensor([i / 4], dtype=torch.float64)), xt == generator.mask)
        masked = torch.nonzero(xt[0] == generator.mask)[:, 0]
        best = int(log_p.max(dim=-1).values.argmax())
        xt[0, masked[best]] = log_p[best].argmax()
    assert schedule.alpha(torch.tensor(0.25)) == 0.75
    text = tuple(xt[0, 2:].tolist())
    other = (*text[:3], (text[3] + 1) % 27)
    for bound in ("sampler", "exact_order"):
        scores = scorer(generator, bound).score([Pair(context, text), Pair(context, other)])
        assert [score.greedy for score in scores] == [True, False]


def test_an_exact_likelihood_of_candidates_is_refused(generator):
    with pytest.raises(ConfigurationError, match=r"candidates is 2: .*give 1, or 0 with a normalised energy"):
        scorer(generator, "exact_order", ResolvedSettings(Sampler(steps=3, candidates=2), "step"))
