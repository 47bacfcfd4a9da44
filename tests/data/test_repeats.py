from collections import Counter

import numpy as np
import pytest

from edlm.data import repeats
from edlm.data.repeats import Repeats


def counted(texts):
    actual = Repeats()
    for text in texts:
        actual.add(hash(text), text)
    return actual.notable()


def stream(frequent, others):
    """`frequent` texts with their counts among `others` different texts, in a random order."""
    texts = [text for text, count in frequent.items() for _ in range(count)] + [f"text {i}" for i in range(others)]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def test_a_text_that_fills_a_part_is_named_with_its_count_and_share():
    actual = counted(stream({"[deleted]" + "." * 100: 300, "[removed]": 31, "rare": 29}, 2640))
    assert [(text.beginning, text.documents, text.share) for text in actual] == [
        (("[deleted]" + "." * 100)[:60], 300, pytest.approx(0.1)),
        ("[removed]", 31, pytest.approx(31 / 3000)),
    ]


def test_few_copies_are_not_named_however_small_the_split_is():
    assert counted(stream({"twice": 9}, 20)) == ()
    assert [text.documents for text in counted(stream({"often": 10}, 20))] == [10]


@pytest.mark.parametrize("position", ["first", "last", "anywhere"])
def test_no_frequent_text_is_missed_in_bounded_memory(monkeypatch, position):
    monkeypatch.setattr(repeats, "COUNTED", 200)
    texts = stream({"often": 1100, "seldom": 400}, 100_000 - 1500)
    if position != "anywhere":
        texts.sort(key=lambda text: (text == "often") == (position == "last"))
    counts = Repeats()
    for text in texts:
        counts.add(hash(text), text)
        assert len(counts._counts) <= 200
    assert Counter(texts)["often"] > repeats.NOTABLE * len(texts)
    (actual,) = counts.notable()
    assert actual.beginning == "often"
    assert 1100 - len(texts) / 200 <= actual.documents <= 1100
