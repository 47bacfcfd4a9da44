import json
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.config import ConfigurationError, parse
from edlm.corpus import Files
from edlm.splits import Shares, assigned

shares = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(
    lambda percent: Shares(validation=percent[0] / 100, judge=percent[1] / 100)
)
texts = st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=40)


def written(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Files(paths=(str(path),))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("splits")


def by_split(corpus, validation, shares):
    found = defaultdict(list)
    for document, split in assigned(corpus, validation, shares):
        found[split].append(document.text)
    return found


@settings(max_examples=40, deadline=None)
@given(texts, shares)
def test_splits_share_no_text_and_lose_none(place, texts, shares):
    found = by_split(written(place / "a.jsonl", texts), None, shares)
    assert sorted(text for held in found.values() for text in held) == sorted(texts)
    sets = [set(found[split]) for split in ("train", "validation", "judge")]
    assert sum(map(len, sets)) == len(set(texts))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), shares)
def test_every_split_is_within_a_document_or_two_of_its_share(place, sizes, shares):
    texts = [f"{number:03d}" + "x" * size for number, size in enumerate(sizes)]
    found = by_split(written(place / "b.jsonl", texts), None, shares)
    total, longest = sum(map(len, texts)), max(map(len, texts))
    parts = {"train": 1 - shares.validation - shares.judge, "validation": shares.validation, "judge": shares.judge}
    for split, part in parts.items():
        held = sum(map(len, found[split]))
        assert abs(held - part * total) <= 2 * longest
        if part == 0:
            assert held == 0


@settings(max_examples=40, deadline=None)
@given(texts)
def test_the_first_document_is_trained_on(place, texts):
    found = by_split(written(place / "c.jsonl", texts), None, Shares(validation=0.3, judge=0.3))
    assert found["train"][0] == texts[0]


def test_few_documents_are_shared_out_exactly(place):
    corpus = written(place / "d.jsonl", [f"{number:02d}" for number in range(20)])
    found = by_split(corpus, None, Shares(validation=0.1, judge=0.25))
    assert {split: len(documents) for split, documents in found.items()} == {"train": 13, "validation": 2, "judge": 5}


@settings(max_examples=40, deadline=None)
@given(texts, texts)
def test_what_a_validation_corpus_holds_is_neither_trained_on_nor_judged_by(place, texts, held_out):
    corpus = written(place / "e.jsonl", ["only here", *texts])
    validation = written(place / "v.jsonl", held_out)
    found = by_split(corpus, validation, Shares(validation=0, judge=0.2))
    assert found["validation"] == held_out
    assert not set(found["train"] + found["judge"]) & set(held_out)
    assert sorted(found[None]) == sorted(text for text in texts if text in held_out)


def test_a_second_pass_is_the_same(place):
    corpus = written(place / "f.jsonl", ["a", "bb", "a", "ccc", "d"])
    shares = Shares(validation=0.3, judge=0.2)
    assert list(assigned(corpus, None, shares)) == list(assigned(corpus, None, shares))


def test_an_empty_corpus_is_refused(place):
    shares = Shares(validation=0.1, judge=0)
    with pytest.raises(ConfigurationError, match="the corpus holds no text; check its paths"):
        list(assigned(written(place / "g.jsonl", []), None, shares))
    same = written(place / "h.jsonl", ["a"])
    with pytest.raises(ConfigurationError, match="or none that the validation corpus does not hold"):
        list(assigned(same, same, Shares(validation=0, judge=0)))


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ConfigurationError, match=r"validation 0\.5 and judge 0\.5 leave nothing to train on"):
        parse(Shares, {"validation": 0.5, "judge": 0.5})
    with pytest.raises(ConfigurationError, match="judge"):
        parse(Shares, {"validation": 0.5, "judge": -0.1})
