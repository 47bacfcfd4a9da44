"""Composed energies: a sum is the product of its terms' factors, and a reward is the energy of a function of texts."""

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from edlm.config import ConfigurationError
from edlm.energies.compose import Reward, WeightedSum
from edlm.energies.conditional import ConditionalEnergyConfig
from edlm.energies.step import StepEnergyConfig
from edlm.energies.uniform import Uniform
from edlm.energies.whole_sequence import BidirectionalEnergyConfig
from edlm.evaluation.calibration import energies_of_pairs
from edlm.exact.hidden_markov import HiddenMarkovModel
from edlm.exact.models import ExactEnergy
from edlm.interfaces import Model
from edlm.likelihood.bounds import sampler_bound
from edlm.likelihood.log_partition import log_partition_ends
from edlm.sampling.sampler import EXACT, Sampler
from edlm.schedule import LogLinear
from tests.counting import chi_square
from tests.energies.situation import L, V, situation
from tests.enumeration import Step, exact_bound, mean_step_nll, sampler_distribution
from tests.networks import base_of, denoiser, stirred
from tests.sampling.test_sampler_distribution import FAR, counts
from tests.worlds import Conditional, Marginals, OnProposal, Residual, world

DENSE = world("dense", seed=1)
READER = Marginals(DENSE, mix=0.1, drift=0.3)
LETTERS = "abc"


class Alphabet:
    """The tokenizer of the world: token i is letter i."""

    def decode(self, ids) -> str:
        return "".join(LETTERS[index] for index in ids)


def liking(texts: list[str]) -> list[float]:
    return [text.count("b") - 0.5 * text.startswith("c") for text in texts]


LIKED = Reward(liking, Alphabet(), DENSE.mask)
STEP, WHOLE = Residual(DENSE, whole_sequence=False), Residual(DENSE, whole_sequence=True)


class ByHand:
    """An energy of one candidate at a time, by its formula."""

    block = None

    def __init__(self, whole_sequence: bool, value: Callable[[Tensor, Tensor, Tensor], float]) -> None:
        self.whole_sequence, self.value = whole_sequence, value

    def __call__(self, x: Tensor, xt: Tensor, t: Tensor, log_p: Tensor, context: Tensor) -> Tensor:
        rows = [[self.value(x[b, k], xt[b], context[b]) for k in range(x.shape[1])] for b in range(len(x))]
        return torch.tensor(rows, dtype=torch.float64)[..., None]


def residual(x: Tensor, xt: Tensor, table: Tensor) -> float:
    """log p_theta - log q of the new tokens of x."""
    new = [at for at in range(DENSE.length) if xt[at] == DENSE.mask and x[at] != DENSE.mask]
    log_p = sum(table[at, x[at]].item() for at in new)
    return log_p - math.log(DENSE.probability(x).item()) + math.log(DENSE.probability(xt).item())


def disliked(x: Tensor) -> float:
    return -liking(["".join(LETTERS[index] for index in x.tolist())])[0]


SUMS = {
    "a reward": (LIKED, ByHand(True, lambda x, *_: disliked(x))),
    "a weighted reward": (WeightedSum([(2.0, LIKED)]), ByHand(True, lambda x, *_: 2 * disliked(x))),
    "whole sequences and a reward": (
        WeightedSum([(0.5, WHOLE), (1.5, LIKED)]),
        ByHand(True, lambda x, xt, table: 0.5 * residual(x, xt, table) + 1.5 * disliked(x)),
    ),
    "a step energy and a reward": (
        WeightedSum([(0.7, STEP), (2.0, LIKED)]),
        ByHand(True, lambda x, xt, table: 0.7 * residual(x, xt, table) + 2 * disliked(x)),
    ),
    "step energies": (
        WeightedSum([(0.4, STEP), (0.3, Conditional(DENSE)), (0, LIKED)]),
        ByHand(False, lambda x, xt, table: 0.7 * residual(x, xt, table)),
    ),
    "against an energy": (
        WeightedSum([(1.5, STEP), (-0.5, WHOLE)]),
        ByHand(True, lambda x, xt, table: residual(x, xt, table)),
    ),
    "a sum of sums": (
        WeightedSum([(0.5, WeightedSum([(2.0, STEP), (3.0, LIKED)])), (0.5, LIKED)]),
        ByHand(True, lambda x, xt, table: residual(x, xt, table) + 2 * disliked(x)),
    ),
}
every_sum = pytest.mark.parametrize("name", SUMS)
NOISY = torch.tensor([[3, 3, 3], [3, 1, 3], [0, 3, 2], [3, 3, 1]])


@every_sum
def test_the_distribution_of_a_step_is_the_product_of_the_factors(name):
    energy, by_hand = SUMS[name]
    for xt in NOISY:
        masked = xt == DENSE.mask
        table = READER.read(xt[None], torch.full((1,), 0.7, dtype=torch.float64))[0]
        texts = [x for x in DENSE.texts if torch.equal(x[~masked], xt[~masked])]
        log_p = [sum(table[at, x[at]].item() for at in torch.nonzero(masked)[:, 0]) for x in texts]
        weights = [math.exp(p - by_hand.value(x, xt, table)) for p, x in zip(log_p, texts, strict=True)]
        actual = Step(DENSE, READER, energy, EXACT).distribution(xt, 0.7, masked)
        for x, weight in zip(texts, weights, strict=True):
            assert actual[tuple(x.tolist())] == pytest.approx(weight / sum(weights), abs=1e-12)


@every_sum
def test_the_texts_follow_the_distribution_of_the_sum(name):
    energy, by_hand = SUMS[name]
    sampler, rows = Sampler(steps=2, candidates=3), 4000
    texts = sampler.sample(DENSE.canvas(rows), READER, energy, LogLinear(), torch.arange(rows))
    distribution = sampler_distribution(DENSE, READER, by_hand, sampler, LogLinear(), DENSE.canvas(1)[0])
    plain = sampler_distribution(DENSE, READER, None, sampler, LogLinear(), DENSE.canvas(1)[0])
    assert chi_square(counts(DENSE, texts), distribution) < FAR < chi_square(counts(DENSE, texts), plain)


@every_sum
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_bound_is_that_of_the_formula_text_by_text(name, steps):
    energy, by_hand = SUMS[name]
    for sampler in (Sampler(steps=steps, candidates=3), Sampler(steps=steps, candidates=2, energy_temperature=2.0)):
        actual, expected = (
            sampler_bound(DENSE.texts, READER, of, LogLinear(), sampler, seed=1, draws=1, repeats=2)
            for of in (energy, by_hand)
        )
        torch.testing.assert_close(actual.values, expected.values, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "steps"), [("a step energy and a reward", 2), ("step energies", 1), ("a reward", 1)])
def test_the_mean_of_the_bound_over_every_draw_lies_above_the_truth(name, steps):
    step = Step(DENSE, READER, SUMS[name][0], candidates=2)
    truth = exact_bound(step, steps, LogLinear())
    assert truth - 1e-9 < exact_bound(step, steps, LogLinear(), mean_step_nll) < truth + 1


def test_log_z_is_estimated_as_that_of_other_whole_sequence_energies():
    energy, by_hand = SUMS["a step energy and a reward"]
    t, blank = torch.full((1,), 0.7, dtype=torch.float64), DENSE.canvas(1)
    context = READER.read(blank, t)
    table = [sum(context[0, at, token].item() for at, token in enumerate(x.tolist())) for x in DENSE.texts]
    z = sum(math.exp(p - by_hand.value(x, blank[0], context[0])) for p, x in zip(table, DENSE.texts, strict=True))
    low, high = log_partition_ends(blank, t, context, Model(READER, energy, LogLinear()), seed=0, i=0, draws=20000)
    assert low.item() == pytest.approx(math.log(z), abs=0.05)
    assert high.item() == pytest.approx(math.log(z), abs=0.05)


WEIGHTS = st.floats(-3, 3).map(lambda weight: round(weight, 3))


def arguments(energy, k: int = 4):
    """Candidates as the sampler shows them to an energy."""
    g = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, (len(NOISY), k, 3), generator=g)
    masked = NOISY[:, None] == DENSE.mask
    if not energy.whole_sequence:
        masked = masked & (torch.arange(3) < 2)  # the last position is left to later steps
    t = torch.linspace(0.2, 1.0, len(NOISY), dtype=torch.float64)
    log_p = torch.zeros(len(NOISY), k, 1, dtype=torch.float64)
    return torch.where(masked, drawn, NOISY[:, None]), NOISY, t, log_p, READER.read(NOISY, t)


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=4), data=st.data())
def test_a_sum_is_linear_in_its_weights(weights, data):
    terms = [(weight, data.draw(st.sampled_from([STEP, WHOLE, LIKED]))) for weight in weights]
    energy = WeightedSum(terms)
    given = arguments(energy)
    expected = sum((weight * term(*given) for weight, term in terms if weight), torch.zeros_like(given[3]))
    torch.testing.assert_close(energy(*given), expected)
    half = len(terms) // 2
    nested = WeightedSum([(1.0, WeightedSum(terms[:half])), (1.0, WeightedSum(terms[half:]))])
    torch.testing.assert_close(nested(*given), expected)
    scaled = WeightedSum([(2 * weight, term) for weight, term in terms])
    torch.testing.assert_close(scaled(*given), 2 * energy(*given))


@pytest.mark.parametrize("energy", [STEP, WHOLE, LIKED, OnProposal(DENSE, world("dense", seed=5))])
def test_a_term_of_weight_1_alone_is_that_energy_to_the_last_bit(energy):
    alone = WeightedSum([(1.0, energy), (0.0, LIKED), (0.0, STEP)])
    assert (alone.whole_sequence, alone.block) == (energy.whole_sequence, energy.block)
    for sampler in (Sampler(steps=2, candidates=3), Sampler(steps=1, candidates=2)):
        actual, expected = (
            sampler_bound(DENSE.texts, READER, of, LogLinear(), sampler, seed=1, draws=1) for of in (alone, energy)
        )
        assert torch.equal(actual.values, expected.values)
        actual, expected = (
            sampler.sample(DENSE.canvas(50), READER, of, LogLinear(), torch.arange(50)) for of in (alone, energy)
        )
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("terms", [[], [(0.0, LIKED)], [(1.0, LIKED), (-1.0, LIKED)]])
def test_terms_that_cancel_are_plain_diffusion(terms):
    plain = sampler_bound(DENSE.texts, READER, None, LogLinear(), Sampler(steps=2), seed=1, draws=1)
    sampler = Sampler(steps=2, candidates=3)
    actual = sampler_bound(DENSE.texts, READER, WeightedSum(terms), LogLinear(), sampler, seed=1, draws=1)
    torch.testing.assert_close(actual.values, plain.values, atol=1e-12, rtol=0)


def test_a_text_that_is_forbidden_is_not_generated_where_there_is_another():
    forbidding = Reward(lambda texts: [-math.inf if "a" in text else 0.0 for text in texts], Alphabet(), DENSE.mask)
    energy = WeightedSum([(0.5, forbidding), (1.0, STEP)])
    actual = Step(DENSE, READER, energy, EXACT).distribution(DENSE.canvas(1)[0], 1.0, DENSE.canvas(1)[0] == DENSE.mask)
    assert sum(p for x, p in actual.items() if 0 in x) == 0
    assert sum(actual.values()) == pytest.approx(1)


# ---------------------------------------------------------------- networks


@settings(max_examples=10, deadline=None)
@given(blocks=st.lists(st.sampled_from([1, 2, 3, 4, 5, None]), min_size=1, max_size=3))
def test_blocks_are_joined_to_the_smallest_that_hold_whole_blocks_of_every_term(blocks):
    net, _, (x, xt, t, log_p, context) = situation(StepEnergyConfig(block=None))
    terms = [stirred(StepEnergyConfig(block=block).build(net, None), seed=i) for i, block in enumerate(blocks)]
    energy = WeightedSum([(1.0, term) for term in terms])
    assert energy.block == (None if None in blocks else math.lcm(*blocks))
    values = energy(x, xt, t, log_p.expand(-1, -1, -(-L // energy.block) if energy.block else 1), context)
    total = sum(term(x, xt, t, log_p, context).double().sum(dim=-1) for term in terms)
    torch.testing.assert_close(values.sum(dim=-1), total)
    if energy.block:
        mine = torch.arange(L) < energy.block  # the first group sees nothing of the others' new tokens
        alone = torch.where(mine, x, xt[:, None])
        first = sum(term(alone, xt, t, log_p, context).double().sum(dim=-1) for term in terms)
        torch.testing.assert_close(values[..., 0], first)


def test_a_sum_of_networks_scores_every_row_by_itself_and_moves_and_trains_with_them():
    net, _, (x, xt, t, log_p, context) = situation(BidirectionalEnergyConfig())
    configs = [StepEnergyConfig(block=4), ConditionalEnergyConfig(), BidirectionalEnergyConfig()]
    terms = [stirred(config.build(net, base_of(config, net)), seed=3) for config in configs]
    energy = WeightedSum([(0.5, term) for term in terms])
    together = energy(x, xt, t, log_p, context)
    assert together.shape == (4, 3, 1)
    for row in range(len(x)):
        alone = slice(row, row + 1)
        assert torch.equal(energy(x[alone], xt[alone], t[alone], log_p[alone], context[alone]), together[alone])
    together.sum().backward()
    assert all(layer.weight.grad is not None for layer in (terms[0].own, terms[1].correction, terms[2].project))
    assert {weight.dtype for weight in energy.bfloat16().parameters()} == {torch.bfloat16}


def test_a_sum_is_evaluated_as_any_energy():
    net = denoiser(V)
    reward = Reward(lambda texts: [float(len(set(text))) for text in texts], Numbers(), net.mask)
    energy = WeightedSum([(1.0, stirred(StepEnergyConfig(block=4).build(net, None))), (1.0, reward)])
    x0 = torch.randint(V, (6, L), generator=torch.Generator().manual_seed(0))
    data, samples = energies_of_pairs(x0, Model(net, energy, LogLinear()), seed=0, draws=2, times=(0.0, 1.0))
    assert data.shape == samples.shape == (12,)
    bound = sampler_bound(x0, net, energy, LogLinear(), Sampler(steps=3, candidates=4), seed=0, draws=1)
    assert bool(bound.values.isfinite().all())


class Numbers:
    """A tokenizer whose text of a token is its number."""

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


# ---------------------------------------------------------------- what does not add up


def test_residuals_of_different_distributions_are_refused():
    first, other = (OnProposal(DENSE, world("dense", seed=seed)) for seed in (5, 6))
    with pytest.raises(ConfigurationError, match="residuals of the proposal of a Conditional and p_theta"):
        WeightedSum([(1.0, first), (1.0, STEP)])
    with pytest.raises(ConfigurationError, match="do not add up"):
        WeightedSum([(1.0, first), (1.0, other)])
    assert WeightedSum([(0.5, first), (0.5, first)]).proposal is first.proposal
    assert WeightedSum([(1.0, first), (0.0, STEP)]).proposal is first.proposal


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_no_finite_number_is_refused(weight):
    with pytest.raises(ConfigurationError, match=f"the weight of Residual is {weight}; give a finite number"):
        WeightedSum([(weight, STEP)])


def test_a_term_that_reads_log_p_of_smaller_blocks_is_refused_with_what_to_give():
    _, _, (x, xt, t, log_p, context) = situation(StepEnergyConfig(block=4))
    source = HiddenMarkovModel(*(torch.full(shape, 1 / shape[-1]).double() for shape in ((2,), (2, 2), (2, V))), L)
    exact = ExactEnergy(source, whole_sequence=False, block=2)
    energy = WeightedSum([(1.0, exact), (1.0, Uniform(whole_sequence=False, block=4))])
    with pytest.raises(ConfigurationError, match=r"ExactEnergy has blocks of 2 .* the sum has blocks of 4; give all"):
        energy(x, xt, t, log_p, context)
    WeightedSum([(1.0, exact), (1.0, Uniform(whole_sequence=False, block=2))])(
        x, xt, t, torch.zeros(4, 3, L // 2), context
    )


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (lambda _: [1.0], r"of 3 texts has shape \[1\]; return one number for each"),
        (lambda _: 1.0, r"has shape \[\]"),
        (lambda texts: [[1.0, 2.0]] * len(texts), r"has shape \[3, 2\]"),
        (lambda _: [0.0, math.nan, 0.0], "the reward is nan for 'bb'; return a finite number, or -inf"),
        (lambda _: [math.inf] * 3, "the reward is inf for 'a'"),
    ],
)
def test_a_reward_that_is_no_number_for_each_text_is_refused_with_the_text(rewards, message):
    with pytest.raises(ValueError, match=message):
        Reward(rewards, Alphabet(), DENSE.mask).of(["a", "bb", "c"])


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda values: torch.tensor(values).numpy()])
def test_a_reward_may_be_a_list_an_array_or_a_tensor(kind):
    assert Reward(lambda texts: kind(liking(texts)), Alphabet(), DENSE.mask).of(["bb", "ca"]).tolist() == [2.0, -0.5]
