import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from edlm.data.corpus import Embedded
from edlm.evaluation.degeneration import DEVIATIONS, STANDARD_ERRORS, flags, repeaters
from edlm.evaluation.judged_quality import Quality, assess
from tests.judges import CHARACTERS, Copying, judged_by, learnt

LENGTH, COUNT = 256, 32
SPLITS = TRAIN, VALIDATION, TEST = range(3)


@cache
def rows(split: int) -> torch.Tensor:
    """Rows of English text, no document of which is in two splits."""
    documents = list(itertools.islice(Embedded().documents(), split, None, 3))
    ids = np.concatenate(CHARACTERS.encode_documents([document.text for document in documents]))
    return torch.from_numpy(ids[: len(ids) // LENGTH * LENGTH]).long().view(-1, LENGTH)


def some(split: int, seed: int) -> torch.Tensor:
    return rows(split)[torch.randperm(len(rows(split)), generator=torch.Generator().manual_seed(seed))[:COUNT]]


@cache
def judge():
    return judged_by(Copying(learnt(rows(TRAIN), CHARACTERS.size)))


@cache
def data() -> Quality:
    return assess(some(VALIDATION, 0), judge())


def noise() -> torch.Tensor:
    """Letters as often as in English, in no order."""
    letters = rows(TRAIN).flatten()
    return letters[torch.randint(len(letters), (COUNT, LENGTH), generator=torch.Generator().manual_seed(0))]


def test_a_repeater_repeats_the_beginning_of_its_text():
    texts = torch.arange(20).view(2, 10)
    assert repeaters(texts, 0.4).tolist() == [[0, 1, 2, 3] * 2 + [0, 1], [10, 11, 12, 13] * 2 + [10, 11]]
    long = torch.arange(1024)[None]
    assert repeaters(long)[0, 400:402].tolist() == [0, 1]


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_a_period_that_repeats_nothing_is_refused(share):
    with pytest.raises(ValueError, match="it must be 1 to 9"):
        repeaters(torch.zeros(2, 10, dtype=torch.long), share)


def test_a_repeater_has_low_perplexity_and_normal_entropy_and_is_flagged():
    repeater = assess(repeaters(some(TEST, 1)), judge())
    assert repeater.generative_perplexity.mean < data().generative_perplexity.mean / 2
    assert "repetition above data" in flags(repeater, data())
    assert "nats per token below data" in flags(repeater, data())
    assert not any("entropy" in flag for flag in flags(repeater, data()))


@pytest.mark.parametrize("seed", range(4))
def test_data_of_another_split_is_not_flagged(seed):
    assert flags(assess(some(TEST, seed), judge()), data()) == ()


def test_noise_is_flagged_for_holding_no_phrase_twice_and_not_for_being_unlikely():
    quality = assess(noise(), judge())
    assert quality.generative_perplexity.mean > 3 * data().generative_perplexity.mean
    assert flags(quality, data()) == ("repetition below data",)


def test_even_letters_and_a_single_letter_are_flagged_by_entropy():
    even = torch.arange(CHARACTERS.size).repeat(10)[:LENGTH].repeat(COUNT, 1)
    assert "entropy above data" in flags(assess(even, judge()), data())
    assert "entropy below data" in flags(assess(torch.ones_like(even), judge()), data())


def test_a_difference_is_flagged_beyond_the_spread_of_the_data_and_beyond_chance():
    spread = torch.linspace(-1, 1, COUNT, dtype=torch.float64)
    quiet = replace(data(), unigram_entropy=2 + 0.1 * spread)
    deviation = quiet.unigram_entropy.std().item()
    # The same noise in both sets: four standard errors of the difference are 4 sqrt(2 / 32) = 1 deviation.
    chance = STANDARD_ERRORS * (2 / COUNT) ** 0.5 * deviation
    for difference, flagged in ((0.99, ()), (1.01, ("entropy above data",))):
        assert flags(replace(quiet, unigram_entropy=quiet.unigram_entropy + difference * chance), quiet) == flagged
    # Without noise in the set, chance is 4 sqrt(1 / 32) deviations, and half a deviation is less.
    same = replace(quiet, unigram_entropy=torch.full_like(spread, 2 - 0.72 * deviation))
    assert flags(same, quiet) == ("entropy below data",)
    many = {name: getattr(quiet, name).repeat(8) for name in ("nats", "tokens", "unigram_entropy", "repetition")}
    for difference, flagged in ((0.97, ()), (1.03, ("entropy below data",))):
        shifted = replace(quiet, **many, distinct=())
        moved = shifted.unigram_entropy - difference * DEVIATIONS * shifted.unigram_entropy.std()
        assert flags(replace(shifted, unigram_entropy=moved), shifted) == flagged


def test_sets_that_do_not_compare_are_refused():
    for other, what in (
        (replace(data(), judge="another"), "judges, another and exact"),
        (replace(data(), nats=data().nats[:-1]), "numbers of texts, 31 and 32"),
        (replace(data(), row=128), "lengths, 128 and 256"),
    ):
        with pytest.raises(ValueError, match=what):
            flags(other, data())
    few = assess(rows(TEST)[:7], judge())
    with pytest.raises(ValueError, match="7 texts are too few to compare; assess 8"):
        flags(few, few)
