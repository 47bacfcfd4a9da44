import math

import pytest
import torch

from edlm.judge import assess
from tests.networks import autoregressive

V = 5


def test_generative_perplexity_is_that_of_the_whole_set():
    judge = autoregressive(V)
    texts = torch.randint(V, (6, 12), generator=torch.Generator().manual_seed(0))
    quality = assess(texts, judge)
    expected = math.exp(-judge.log_p(texts).double().mean().item())
    assert quality.generative_perplexity == pytest.approx(expected)
    assert quality.nll_standard_error > 0


def test_a_repeater_shows_in_entropy_and_distinct_ngrams():
    judge = autoregressive(V)
    repeated = assess(torch.zeros(4, 12, dtype=torch.long), judge)
    assert repeated.entropy_nats == 0
    assert repeated.distinct_ngrams == pytest.approx(1 / 36)
    varied = assess(torch.arange(12).remainder(V).repeat(4, 1), judge)
    assert varied.entropy_nats == pytest.approx(-sum(c / 12 * math.log(c / 12) for c in (3, 3, 2, 2, 2)))


@pytest.mark.parametrize(
    "texts", [torch.full((2, 12), V), torch.full((2, 12), -1), torch.zeros(0, 12, dtype=torch.long)]
)
def test_masks_left_over_and_empty_sets_are_refused(texts):
    with pytest.raises(ValueError, match=r"vocabulary of 5|at least one text"):
        assess(texts, autoregressive(V))
