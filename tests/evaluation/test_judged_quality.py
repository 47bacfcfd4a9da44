import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data.tokenizer_kinds import Bytes
from edlm.evaluation.judge_models import Retokenizer, first_documents
from edlm.evaluation.judged_quality import REPEATED, Average, assess, average
from tests.judges import CHARACTERS, judged_by, random_bigram, written

V = CHARACTERS.size
NETWORK = random_bigram(V)
JUDGE = judged_by(NETWORK)
BYTES = Bytes().build([])
EMPTY = assess(torch.zeros(2, 4, dtype=torch.long), JUDGE)
rows = st.integers(4, 30).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 2), min_size=length, max_size=length), min_size=1, max_size=4)
)


def ngrams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def repeated_share(ids: list[int]) -> float:
    """The definition, word for word."""
    seen, inside = set(), set()
    for start, gram in enumerate(ngrams(ids, REPEATED)):
        if gram in seen:
            inside |= set(range(start, start + REPEATED))
        seen.add(gram)
    return len(inside) / len(ids)


@settings(max_examples=100, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_every_statistic_is_its_definition_on_texts_of_any_lengths(texts, random):
    lengths = [random.randint(1, len(row)) for row in texts]
    lengths[0] = len(texts[0])
    quality = assess(torch.tensor(texts), JUDGE, torch.tensor(lengths))
    kept = [row[:length] for row, length in zip(texts, lengths, strict=True)]
    for n, distinct in enumerate(quality.distinct, start=1):
        grams = [gram for row in kept for gram in ngrams(row, n)]
        assert distinct == pytest.approx(len(set(grams)) / len(grams))
    entropies = [-sum(c / len(row) * math.log(c / len(row)) for c in Counter(row).values()) for row in kept]
    np.testing.assert_allclose(quality.unigram_entropy, entropies, atol=1e-12)
    np.testing.assert_allclose(quality.repetition, [repeated_share(row) for row in kept])


def test_generative_perplexity_is_that_of_the_whole_set():
    texts = torch.randint(V, (6, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, 3, 12, 7, 12, 1])
    quality = assess(texts, JUDGE, lengths)
    assert quality.nats_per_token.mean == pytest.approx((quality.nats.sum() / lengths.sum()).item())
    assert quality.generative_perplexity.mean == pytest.approx(math.exp(quality.nats.sum() / lengths.sum()))


def test_for_texts_of_one_length_the_error_is_that_of_a_mean_over_texts():
    texts = torch.randint(V, (9, 12), generator=torch.Generator().manual_seed(0))
    quality = assess(texts, JUDGE)
    per_text = quality.nats / 12
    error = (per_text.std() / 3).item()
    assert quality.nats_per_token.standard_error == pytest.approx(error)
    assert quality.generative_perplexity.standard_error == pytest.approx(math.exp(per_text.mean()) * error)
    assert quality.entropy_nats == average(quality.unigram_entropy)
    assert average(torch.tensor([1.0, 2.0, 6.0]).double()).standard_error == pytest.approx(math.sqrt(7 / 3))
    assert math.isnan(average(torch.ones(1).double()).standard_error)


def test_the_error_of_a_ratio_is_the_spread_of_that_ratio():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 40, (400, 50), generator=generator)
    nats = lengths * (2 + 0.3 * torch.randn(400, 50, generator=generator, dtype=torch.float64))
    sets = [replace(EMPTY, nats=n, tokens=t).nats_per_token for n, t in zip(nats, lengths, strict=True)]
    spread = torch.tensor([actual.mean for actual in sets]).double().std().item()
    claimed = sum(actual.standard_error for actual in sets) / len(sets)
    assert claimed == pytest.approx(spread, rel=0.1)


def test_nats_are_per_token_of_the_generator_whatever_the_judge_reads():
    twice = Retokenizer(lambda text: [i for i in CHARACTERS.encode(text).tolist() for _ in (0, 1)], None)
    text, judge = written(["a cat sat"]), judged_by(NETWORK, spelling=twice)
    quality = assess(text, judge)
    doubled = assess(text.repeat_interleave(2, dim=1), JUDGE)
    assert quality.retokenised
    assert not doubled.retokenised
    assert quality.nats.item() == pytest.approx(doubled.nats.item())
    assert quality.nats_per_token.mean == pytest.approx(quality.nats.item() / 9)
    assert quality.nats_per_character.mean == pytest.approx(quality.nats.item() / 9)
    assert quality.judge_tokens.item() == 18
    assert quality.judge == "exact"


def test_a_character_of_several_bytes_is_one_character():
    text = torch.tensor([list("é, ö".encode())])
    quality = assess(text, judged_by(random_bigram(256), BYTES))
    assert (quality.tokens.tolist(), quality.characters.tolist()) == ([6], [4])


def test_what_stands_behind_the_first_document_enters_no_statistic():
    judge = judged_by(random_bigram(257), BYTES)
    text = [*b"a cat sat", BYTES.separator]
    texts = torch.tensor([text + [7] * 10, text + list(range(10))])
    quality = assess(texts, judge, first_documents(texts, BYTES.separator))
    alone = assess(torch.tensor([text, text]), judge)
    for name in ("nats", "tokens", "characters", "unigram_entropy", "repetition"):
        torch.testing.assert_close(getattr(quality, name), getattr(alone, name))
    assert quality.distinct == alone.distinct
    assert quality.row == 20


def test_one_token_over_and_over_has_no_entropy_and_repeats_itself():
    quality = assess(torch.zeros(4, 12, dtype=torch.long), JUDGE)
    assert quality.entropy_nats == Average(0.0, 0.0)
    assert quality.distinct == pytest.approx((1 / 48, 1 / 44, 1 / 40, 1 / 36))
    # The eight-gram that begins at 1 is the first that was there before.
    assert quality.repeated_share.mean == pytest.approx(11 / 12)


def test_a_text_too_short_to_repeat_itself_does_not():
    assert assess(torch.zeros(2, 5, dtype=torch.long), JUDGE).repeated_share.mean == 0


def test_texts_and_lengths_that_cannot_be_assessed_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\); at least one text of 4 tokens is needed"):
        assess(torch.zeros(2, 3, dtype=torch.long), JUDGE)
    with pytest.raises(ValueError, match="at least one text"):
        assess(torch.zeros(0, 12, dtype=torch.long), JUDGE)
    with pytest.raises(ValueError, match="lengths of 0 to 6 tokens"):
        assess(torch.zeros(2, 12, dtype=torch.long), JUDGE, torch.tensor([6, 0]))
    with pytest.raises(ValueError, match="lengths of 4 to 13 tokens"):
        assess(torch.zeros(2, 12, dtype=torch.long), JUDGE, torch.tensor([4, 13]))
    with pytest.raises(ValueError, match="token 27 is not in the texts' vocabulary"):
        assess(torch.full((2, 12), V), JUDGE)
