"""The forward and backward passes of a distribution agree with sums over all its texts and all paths of its states."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edlm.data.synthetic import Agree, HiddenMarkov, Markov
from edlm.exact import hidden_markov as distributions
from tests.counting import chi_square
from tests.enumeration import subsets
from tests.worlds import EnumeratedAutoregressive, Marginals, cartesian, hidden

FAR = 3.9
N = 20_000
# Concentrations down to where some probabilities are 0.
concentrations = st.sampled_from([0.02, 0.4, 2.0])
sizes = {"symbols": st.integers(2, 3), "length": st.integers(1, 4), "seed": st.integers(0, 99)}
sources = st.one_of(
    st.builds(Agree, **sizes),
    st.builds(Markov, concentration=concentrations, **sizes),
    st.builds(
        HiddenMarkov,
        states=st.integers(1, 3),
        move_concentration=concentrations,
        emission_concentration=concentrations,
        **sizes,
    ),
)
every_distribution = settings(max_examples=25, deadline=None)
THREE = {
    "agree": Agree(symbols=3, length=4),
    "markov": Markov(symbols=3, length=4, seed=1),
    "hidden": HiddenMarkov(symbols=3, length=4, states=3, move_concentration=0.4, seed=1),
}
three = pytest.mark.parametrize("name", THREE)


def both(source):
    """A source's distribution, and the same listed whole."""
    distribution = source.distribution()
    return distribution, hidden(distribution.first, distribution.moves, distribution.emissions, distribution.length)


def representable(distribution, xt):
    """Whether the probability of x_t is 0, or large enough for the products of the table of all texts."""
    log_p = distribution.log_p(xt)
    return (log_p > math.log(1e-250)) | (log_p == -math.inf)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


@every_distribution
@given(sources)
@example(THREE["agree"])
def test_partly_masked_sequences_have_the_probability_of_a_sum_over_all_paths(source):
    distribution, world = both(source)
    x = cartesian(distribution.vocabulary + 1, distribution.length)
    same(distribution.log_p(x).exp(), world.probability(x))
    assert distribution.log_p(x[0]).shape == ()
    assert torch.equal(distribution.log_p(x[None, None])[0, 0], distribution.log_p(x))


@every_distribution
@given(sources)
@example(THREE["agree"])
def test_posteriors_are_those_of_a_sum_over_all_texts_even_where_nothing_is_possible(source):
    distribution, world = both(source)
    xt = cartesian(distribution.vocabulary + 1, distribution.length)
    actual = distribution.posteriors(xt)
    masked = (xt == world.mask) & representable(distribution, xt)[:, None]
    same(actual[masked], Marginals(world).read(xt, torch.ones(len(xt))).exp()[masked])
    known = xt != world.mask
    assert torch.equal(actual[known].argmax(dim=-1), xt[known])
    same(actual.sum(dim=-1), torch.ones(xt.shape, dtype=torch.float64))


@every_distribution
@given(sources, st.data())
def test_the_joint_of_any_set_of_positions_is_that_of_a_sum_over_all_texts(source, data):
    distribution, world = both(source)
    x = cartesian(distribution.vocabulary, distribution.length)
    known = torch.tensor(data.draw(st.lists(st.booleans(), min_size=distribution.length, max_size=distribution.length)))
    hidden_still = (
        torch.tensor(data.draw(st.lists(st.booleans(), min_size=distribution.length, max_size=distribution.length)))
        & ~known
    )
    xt = torch.where(known, x, world.mask)
    x = torch.where(hidden_still, world.mask, x)
    rows = representable(distribution, xt)
    same(distribution.log_joint(x, xt)[rows].exp(), world.log_conditional(x, xt)[rows].exp())
    broadcast = distribution.log_joint(x[None], xt[:, None, :])
    assert torch.equal(broadcast.diagonal(), distribution.log_joint(x, xt))


@every_distribution
@given(sources)
@example(THREE["agree"])
def test_increments_are_the_distribution_as_an_autoregressive_model(source):
    distribution, world = both(source)
    x = cartesian(distribution.vocabulary, distribution.length)
    known = torch.ones(distribution.length, distribution.length, dtype=torch.bool).tril(-1)  # left of each position
    prefixes = representable(distribution, torch.where(known, x[:, None], world.mask))
    same(distribution.increments(x).exp()[prefixes], EnumeratedAutoregressive(world).log_p(x).exp()[prefixes])
    same(distribution.increments(x).sum(dim=1).exp(), world.p)
    partly = cartesian(distribution.vocabulary + 1, distribution.length)
    assert bool((distribution.increments(partly)[partly == world.mask] == 0).all())


@three
def test_drawn_sequences_follow_the_distribution(name):
    distribution, world = both(THREE[name])
    texts = distribution.draw(5, torch.arange(N))
    assert chi_square(counts(texts, world), world.p) < FAR


def test_a_drawn_sequence_depends_on_its_seed_and_row_alone():
    distribution = THREE["hidden"].distribution()
    whole = distribution.draw(7, torch.arange(50))
    assert torch.equal(distribution.draw(7, torch.tensor([41, 3])), whole[[41, 3]])
    assert not torch.equal(distribution.draw(8, torch.arange(50)), whole)


@three
@pytest.mark.parametrize("xt", [(3, 3, 3, 3), (3, 1, 3, 3), (0, 3, 3, 0), (1, 3, 3, 2)])
def test_filled_positions_follow_their_joint_distribution_given_what_is_known(name, xt):
    """The last canvas is impossible where all tokens agree."""
    distribution, world = both(THREE[name])
    canvas = torch.tensor(xt)
    where = (canvas == world.mask) & torch.tensor([True, True, False, True])
    u = torch.rand(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, log_q = distribution.fill(canvas.repeat(N, 1), where.repeat(N, 1), u)
    torch.testing.assert_close(log_q.sum(dim=1), world.log_conditional(x, canvas))
    assert not log_q[:, ~where].any()
    assert bool((x[:, ~where] == canvas[~where]).all())
    every = canvas.repeat(3 ** int(where.sum()), 1)
    every[:, where] = cartesian(3, int(where.sum()))
    expected = world.log_conditional(every, canvas).exp()
    powers = 3 ** torch.arange(int(where.sum()) - 1, -1, -1)
    actual = torch.bincount((x[:, where] * powers).sum(dim=1), minlength=len(every))
    assert chi_square(actual, expected) < FAR


@every_distribution
@given(sources)
@example(THREE["agree"])
def test_the_entropy_of_short_sequences_is_exact(source):
    distribution, world = both(source)
    actual = distribution.entropy()
    assert actual.mean == pytest.approx(world.entropy, abs=1e-9)
    assert actual.standard_error == 0
    assert actual.method == (
        "enumerated" if isinstance(source, HiddenMarkov) and not identity(distribution) else "closed form"
    )


def test_the_estimate_of_an_entropy_covers_what_listing_gives(monkeypatch):
    distribution = HiddenMarkov(symbols=3, length=7, seed=2).distribution()
    listed = distribution.entropy()
    monkeypatch.setattr(distributions, "ENUMERABLE", 1)
    estimated = distribution.entropy(seed=4, sequences=2000)
    assert (listed.method, estimated.method) == ("enumerated", "estimated")
    assert 0 < estimated.standard_error < 0.1
    assert abs(estimated.mean - listed.mean) < 4 * estimated.standard_error


@three
def test_pairs_of_neighbours_have_the_frequencies_of_a_sum_over_all_texts(name):
    distribution, world = both(THREE[name])
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for text, p in zip(world.texts.tolist(), world.p.tolist(), strict=True):
        for a, b in itertools.pairwise(text):
            expected[a, b] += p / 3
    same(distribution.pairs(), expected)


def test_a_thousand_tokens_neither_underflow_nor_lose_precision():
    source = Markov(symbols=5, length=1000, seed=3)
    distribution = source.distribution()
    x = distribution.draw(1, torch.arange(40))
    direct = distribution.first[x[:, 0]].log() + distribution.moves[x[:, :-1], x[:, 1:]].log().sum(dim=1)
    torch.testing.assert_close(distribution.log_p(x), direct, rtol=1e-12, atol=0)
    torch.testing.assert_close(distribution.increments(x).sum(dim=1), direct, rtol=1e-12, atol=0)
    nll, entropy = -direct, distribution.entropy()
    assert abs(nll.mean() - entropy.mean) < 4 * nll.std() / math.sqrt(len(x))
    holed = torch.where(torch.arange(1000) % 2 == 1, distribution.vocabulary, x)
    between = distribution.moves[x[:, 0:-2:2]] * distribution.moves.T[x[:, 2::2]]
    same(distribution.posteriors(holed)[:, 1:-1:2], between / between.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("source", [Agree(length=1000), HiddenMarkov(length=1000)])
def test_long_sequences_of_every_source_have_finite_probabilities_or_none(source):
    distribution = source.distribution()
    x = distribution.draw(1, torch.arange(4))
    assert bool(distribution.log_p(x).isfinite().all())
    impossible = x.clone()
    impossible[:, 500] = (x[:, 500] + 1) % distribution.vocabulary
    log_p = distribution.log_p(impossible)
    assert not log_p.isnan().any()
    if isinstance(source, Agree):
        assert bool((log_p == -math.inf).all())
    canvas = torch.where(
        torch.rand(4, 1000, generator=torch.Generator().manual_seed(0)) < 0.9, distribution.vocabulary, x
    )
    posteriors = distribution.posteriors(canvas)
    same(posteriors.sum(dim=-1), torch.ones(4, 1000, dtype=torch.float64))
    everything = distribution.log_joint(x, canvas)
    assert bool((everything <= 1e-9).all())
    same(everything, distribution.log_p(x) - distribution.log_p(canvas))


def test_with_one_state_tokens_are_independent():
    distribution, _ = both(HiddenMarkov(symbols=3, states=1, length=3, seed=0))
    for masked in subsets(torch.ones(3, dtype=torch.bool))[1:]:
        xt = torch.where(masked, 3, torch.tensor([0, 1, 2]))
        same(distribution.posteriors(xt[None])[0, masked], distribution.emissions.expand(int(masked.sum()), -1))


def identity(distribution) -> bool:
    return torch.equal(distribution.emissions, torch.eye(len(distribution.emissions), dtype=torch.float64))


def counts(texts, world):
    powers = world.vocabulary ** torch.arange(world.length - 1, -1, -1)
    return torch.bincount((texts * powers).sum(dim=1), minlength=len(world.texts))
